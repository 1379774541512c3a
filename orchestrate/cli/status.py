"""What one asks of jobs that were sent: how they are, why they are so, what they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orchestrate.cli.display import ORDER, count_of, line, summary
from orchestrate.cli.select import look_and_record, select
from orchestrate.console import print_line
from orchestrate.cost.measured import Measured
from orchestrate.jobs.snapshot import PROJECT
from orchestrate.mirror import address


def status(store: Path, words: list[str], everything: bool) -> int:
    """A line a job that is not done (or that was named, or all), and how many are in which state. MLflow is brought up to date."""
    folders = select(store, words)
    states = look_and_record(folders)
    if silent := next((state.no_answer for state in states.values() if state.no_answer), ""):
        print_line(f"SLURM does not answer ({silent}): states are as far as the job folders tell")
    by_id = len(folders) == len(words)
    shown = [folder for folder in folders if everything or by_id or states[folder.id].name not in ("done", "stale")]
    names = {folder.id: folder.job.get("name", "") for folder in shown}
    for folder in sorted(shown, key=lambda one: (ORDER.index(states[one.id].name), names[one.id])):
        print_line(line(folder, states[folder.id], names[folder.id]))
    print_line(f"{count_of(len(folders))}: {summary(states)}" if folders else f"no jobs in the store {store} yet")
    if told := Measured(store).graded():
        print_line(f"estimates: {told}")
    _mirror_aside(store)
    return 0


def _mirror_aside(store: Path) -> None:
    """Bring MLflow up to date without anyone waiting for it; with a server each job does so itself."""
    if address.is_server(address.tracking_uri(store)):
        return
    (store / ".mirror").mkdir(exist_ok=True, mode=0o700)
    with open(store / ".mirror" / "sync.log", "w") as log:
        command, env = (
            [sys.executable, "-m", "orchestrate", "sync", "--quiet"],
            {**os.environ, "JIGCLU_STORE": str(store)},
        )
        subprocess.Popen(
            command, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
