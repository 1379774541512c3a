"""What one does to jobs that were sent: end them, send them again, remove what nothing needs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.job_folder import JobFolder
from orchestrate.cli.display import line
from orchestrate.cli.select import all_folders, select, with_downstream
from orchestrate.console import print_line
from orchestrate.jobs.slurm_queue import SlurmUnavailable, ask
from orchestrate.jobs.states import IN_HAND, State, look
from orchestrate.jobs.submissions import submission
from orchestrate.planning import experiments

AT_ONCE = 200  # ids in one scancel


def cancel(store: Path, words: list[str], yes: bool) -> int:
    """End jobs that wait or run, and what waits for them. Asks first where another experiment needs one of them too."""
    if not words:
        raise ConfigError("cancel what? an experiment, a job's id, or all")
    everything = all_folders(store)
    states = look(everything)
    if silent := next((state.no_answer for state in states.values() if state.no_answer), ""):
        raise ConfigError(f"SLURM does not answer, so nothing is cancelled: {silent}")
    in_hand = {folder.id: folder for folder in everything if states[folder.id].name in IN_HAND}
    named = [folder for folder in select(store, words) if folder.id in in_hand]
    chosen = with_downstream(in_hand, [folder.id for folder in named])
    if not chosen:
        print_line("nothing to cancel: none of these jobs waits or runs")
        return 0
    meant = _meant(words, named)
    shared = {one: others for one, folder in chosen.items() if (others := set(folder.job["experiments"]) - meant)}
    for one, folder in chosen.items():
        also = f"  (needed by {', '.join(sorted(shared[one]))})" if one in shared else ""
        print_line(f"{line(folder, states[one])}{also}")
    question = f"{len(shared)} of them other experiments need too. Cancel all {len(chosen)}?"
    if shared and not yes and not _agreed(question):
        print_line("nothing was cancelled (--yes cancels without asking)")
        return 1
    return _end(chosen.values(), states)


def _meant(words: list[str], named: list[JobFolder]) -> set[str]:
    """The experiments that whoever says these words gives up: those named, and those of a named job that only one needs."""
    ledger = experiments.load_all()
    meant = {name for name, one in ledger.items() if "all" in words or {name, one.topic} & set(words)}
    by_id = [folder for folder in named if not meant & set(folder.job["experiments"])]
    return meant.union(*(folder.job["experiments"] for folder in by_id if len(folder.job["experiments"]) == 1))


def _agreed(question: str) -> bool:
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _end(chosen: Iterable[JobFolder], states: dict[str, State]) -> int:
    """scancel, or a stop signal to what runs here; either way it saves at its next step."""
    chosen, left, walks = list(chosen), list[str](), set[int]()
    ids = [states[folder.id].slurm_id for folder in chosen if states[folder.id].slurm_id]
    try:
        for start in range(0, len(ids), AT_ONCE):
            ask("scancel", *ids[start : start + AT_ONCE])
    except SlurmUnavailable as error:
        raise ConfigError(f"scancel: {error}") from None
    for folder in (folder for folder in chosen if not states[folder.id].slurm_id):
        status, marker = folder.status, submission(folder)
        # The worker; before it has said that it runs, submitit's controller.
        at_work = status if status.get("state") == "running" else marker
        if at_work.get("host") != os.uname().nodename or not at_work.get("pid"):
            left.append(f"{folder.id} runs on {at_work.get('host', 'an unknown host')}")
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(at_work["pid"]), signal.SIGTERM)
        walks |= {int(marker["walk"])} if marker.get("walk") else set()
    print_line("cancelled: what ran saves at its next step, and goes on from there with `retry` or its run")
    for walk in sorted(walks):
        print_line(f"the run that started it here (process {walk}) goes on with its other jobs; `kill {walk}` stops it")
    for one in left:
        print_line(f"not cancelled: {one}; stop it there")
    return 1 if left else 0
