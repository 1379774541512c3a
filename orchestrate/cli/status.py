"""`status`: the state of each job, and how many jobs are in which state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orchestrate.cli.display import ORDER, describe, job_count, summary, time_left
from orchestrate.cli.select import look_and_record, select
from orchestrate.console import COLUMNS, print_line, wrapped
from orchestrate.cost.measured import Measured
from orchestrate.jobs.snapshot import PROJECT
from orchestrate.jobs.spent import ESTIMATED, SPENT
from orchestrate.mirror import address


def status(store: Path, words: list[str], everything: bool) -> int:
    """Print one line per job that is not done (or was named; or per job, with `everything`) and a count per state.

    Updates MLflow in the background.
    """
    folders = select(store, words)
    states = look_and_record(folders)
    if error := next((state.no_answer for state in states.values() if state.no_answer), ""):
        print_line(f"SLURM does not answer ({error}): the states come from the job folders alone")
    by_id = len(folders) == len(words)
    shown = [folder for folder in folders if everything or by_id or states[folder.id].name not in ("done", "stale")]
    names = {folder.id: folder.job.get("name", "") for folder in shown}
    for folder in sorted(shown, key=lambda folder: (ORDER.index(states[folder.id].name), names[folder.id])):
        print_line(describe(folder, states[folder.id], names[folder.id]))
    print_line(f"{job_count(len(folders))}: {summary(states)}" if folders else f"no jobs in the store {store} yet")
    if left := time_left(folders, states):
        print_line(left)
    if accuracy := Measured(store).graded():
        print_line(f"estimates: {accuracy}")
        if everything:
            print_line(wrapped(f"time spent: {SPENT}; estimated: {ESTIMATED}", COLUMNS))
    _mirror_in_background(store)
    return 0


def _mirror_in_background(store: Path) -> None:
    """Update MLflow in a process of its own. With a tracking server each job does so itself."""
    if address.is_server(address.tracking_uri(store)):
        return
    (store / ".mirror").mkdir(exist_ok=True, mode=0o700)
    with open(store / ".mirror" / "sync.log", "w") as log:
        command = [sys.executable, "-m", "orchestrate", "sync", "--quiet"]
        env = {**os.environ, "JIGCLU_STORE": str(store)}
        subprocess.Popen(
            command, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
