"""`cancel`: end jobs that wait or run, and the jobs that wait for them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.job_folder import JobFolder
from orchestrate.cli.display import describe
from orchestrate.cli.select import all_folders, select, with_downstream
from orchestrate.console import print_line
from orchestrate.jobs.slurm_queue import SlurmUnavailable, slurm_command
from orchestrate.jobs.states import ACTIVE, State, look
from orchestrate.jobs.submissions import submission
from orchestrate.planning import experiments

IDS_PER_SCANCEL = 200


def cancel(store: Path, words: list[str], yes: bool) -> int:
    """End jobs that wait or run, and their dependents. Unless `yes`, asks first if another experiment needs one.

    0: cancelled, or nothing to cancel; 1: not all were cancelled. Raises ConfigError.
    """
    if not words:
        raise ConfigError("name a job, an experiment or all")
    everything = all_folders(store)
    states = look(everything)
    if error := next((state.no_answer for state in states.values() if state.no_answer), ""):
        raise ConfigError(f"SLURM does not answer, so nothing is cancelled: {error}")
    active = {folder.id: folder for folder in everything if states[folder.id].name in ACTIVE}
    named = [folder for folder in select(store, words) if folder.id in active]
    chosen = with_downstream(active, [folder.id for folder in named])
    if not chosen:
        print_line("nothing to cancel: none of these jobs is waiting or running")
        return 0
    given_up = _given_up(words, named)
    shared = {
        job_id: others for job_id, folder in chosen.items() if (others := set(folder.job["experiments"]) - given_up)
    }
    for job_id, folder in chosen.items():
        also = f"  (required by {', '.join(sorted(shared[job_id]))})" if job_id in shared else ""
        print_line(f"{describe(folder, states[job_id])}{also}")
    question = f"Other experiments require {len(shared)} of them. Cancel all {len(chosen)}?"
    if shared and not yes and not _confirmed(question):
        print_line("nothing was cancelled (--yes cancels without asking)")
        return 1
    return _end(chosen.values(), states)


def _given_up(words: list[str], named: list[JobFolder]) -> set[str]:
    """The experiments that these words give up: those named, and a named job's only experiment."""
    ledger = experiments.load_all()
    given_up = {name for name, experiment in ledger.items() if "all" in words or {name, experiment.topic} & set(words)}
    by_id = [folder for folder in named if not given_up & set(folder.job["experiments"])]
    return given_up.union(*(folder.job["experiments"] for folder in by_id if len(folder.job["experiments"]) == 1))


def _confirmed(question: str) -> bool:
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _end(chosen: Iterable[JobFolder], states: dict[str, State]) -> int:
    """scancel, or a stop signal to a job that runs here; either way a running job saves at its next step."""
    chosen, left, orchestrators = list(chosen), list[str](), set[int]()
    ids = [states[folder.id].slurm_id for folder in chosen if states[folder.id].slurm_id]
    try:
        for start in range(0, len(ids), IDS_PER_SCANCEL):
            slurm_command("scancel", *ids[start : start + IDS_PER_SCANCEL])
    except SlurmUnavailable as error:
        raise ConfigError(f"scancel: {error}") from None
    for folder in (folder for folder in chosen if not states[folder.id].slurm_id):
        status, marker = folder.status, submission(folder)
        # The worker's process; until the worker has recorded that it runs, submitit's controller.
        process = status if status.get("state") == "running" else marker
        if process.get("host") != os.uname().nodename or not process.get("pid"):
            left.append(f"not cancelled: {folder.id} runs on {process.get('host', 'an unknown host')}; stop it there")
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process["pid"]), signal.SIGTERM)
        orchestrator = marker.get("orchestrator_pid") or marker.get("walk")  # `walk`: its name in older stores
        orchestrators |= {int(orchestrator)} if orchestrator else set()
    print_line(
        "cancelled: running jobs save at their next step; `retry`, or the command that started them, resumes them"
    )
    for pid in sorted(orchestrators):
        print_line(f"process {pid} started them and continues with its other jobs; `kill {pid}` stops it")
    for message in left:
        print_line(message)
    return 1 if left else 0
