"""`cancel`: end jobs that wait or run, and the jobs that wait for them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError
from jigclu.files import locked
from jigclu.job_folder import JobFolder
from orchestrate.cli.display import describe
from orchestrate.cli.select import all_folders, select, with_downstream
from orchestrate.console import print_line
from orchestrate.jobs.orchestrators import Orchestrator, live, waiting_for
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
    states = _look(everything)
    active = _cancellable(store, everything, states)
    named = [folder for folder in select(store, words) if folder.id in active]
    chosen = with_downstream(active, [folder.id for folder in named])
    if not chosen:
        print_line("nothing to cancel: none of these jobs is waiting or running")
        return 0
    given_up = _given_up(words, named)
    shared = {
        job_id: others
        for job_id, folder in chosen.items()
        if (others := set(folder.job.get("experiments", [])) - given_up)
    }
    for job_id, folder in chosen.items():
        also = f"  (required by {', '.join(sorted(shared[job_id]))})" if job_id in shared else ""
        print_line(f"{describe(folder, states[job_id])}{also}")
    question = f"Other experiments require {len(shared)} of them. Cancel all {len(chosen)}?"
    if shared and not yes and not confirmed(question):
        print_line("nothing was cancelled (--yes cancels without asking)")
        return 1
    with locked(store / ".submit.lock"):  # no orchestrator starts a job meanwhile
        states = _look(chosen.values())
        ending = [folder for folder in chosen.values() if folder.id in _cancellable(store, chosen.values(), states)]
        return _end(store, ending, states)


def _look(folders: Iterable[JobFolder]) -> dict[str, State]:
    states = look(folders)
    if error := next((state.no_answer for state in states.values() if state.no_answer), ""):
        raise ConfigError(f"SLURM does not answer, so nothing is cancelled: {error}")
    return states


def _cancellable(store: Path, folders: Iterable[JobFolder], states: dict[str, State]) -> dict[str, JobFolder]:
    """The jobs that wait in SLURM's queue or for a local orchestrator, and those that run."""
    waiting = waiting_for(store)
    return {
        folder.id: folder
        for folder in folders
        if states[folder.id].name in ACTIVE or (folder.id in waiting and states[folder.id].name != "done")
    }


def _given_up(words: list[str], named: list[JobFolder]) -> set[str]:
    """The experiments that these words give up: those named, and a named job's only experiment."""
    given_up = {name for name, topic in experiments.topics().items() if "all" in words or {name, topic} & set(words)}
    by_id = [folder for folder in named if not given_up & set(folder.job["experiments"])]
    return given_up.union(*(folder.job["experiments"] for folder in by_id if len(folder.job["experiments"]) == 1))


def confirmed(question: str) -> bool:
    """Ask at the terminal; anything but yes is no, as is no terminal and no answer (Ctrl-D)."""
    try:
        return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, UnicodeDecodeError):  # Ctrl-D, or bytes of another encoding: no answer
        print(flush=True)
        return False


def _end(store: Path, chosen: list[JobFolder], states: dict[str, State]) -> int:
    """scancel, or a stop signal to a job that runs here; either way a running job saves at its next step.

    Orchestrators give up the jobs that they have not started. Call with the submission lock held.
    """
    ids = [states[folder.id].slurm_id for folder in chosen if states[folder.id].slurm_id]
    try:
        for start in range(0, len(ids), IDS_PER_SCANCEL):
            slurm_command("scancel", *ids[start : start + IDS_PER_SCANCEL])
    except SlurmUnavailable as error:
        raise ConfigError(f"scancel: {error}") from None
    local = [folder for folder in chosen if not states[folder.id].slurm_id]
    orchestrators = [found for found in live(store) if {folder.id for folder in local} & set(found.jobs)]
    for orchestrator in orchestrators:
        orchestrator.cancel(folder.id for folder in local if folder.id in orchestrator.jobs)
    left = list(filter(None, (_end_here(folder, states[folder.id], orchestrators) for folder in local)))
    running = sum(states[folder.id].name == "running" for folder in chosen)
    waiting = len(chosen) - running - len(left)
    parts = [f"{_jobs(running - len(left), 'running ')} (saved at the next step)"] if running > len(left) else []
    parts += [_jobs(waiting, "waiting ")] if waiting > 0 else []
    if parts:
        print_line(f"cancelled: {' and '.join(parts)}")
        print_line("`jigclu retry`, or the command that started them, resumes them")
    ended = {folder.id for folder in chosen}
    for orchestrator in orchestrators:
        print_line(_fate(orchestrator, len(set(orchestrator.jobs) - ended)))
    for message in left:
        print_line(message)
    return 1 if left else 0


def _end_here(folder: JobFolder, state: State, orchestrators: list[Orchestrator]) -> str:
    """Stop one local job, or record that it will not start; a line if that cannot be done from here."""
    status, marker = folder.status, submission(folder)
    if state.name not in ACTIVE:
        kept: dict[str, Any] = {key: status[key] for key in ("heartbeat", "host", "pid") if key in status}
        folder.set_status("cancelled", message="cancelled before it started", **kept)
        return ""
    # The worker's process; until the worker has recorded that it runs, submitit's controller.
    process = status if status.get("state") == "running" else marker
    if process.get("host") != os.uname().nodename or not process.get("pid"):
        if any(folder.id in orchestrator.jobs for orchestrator in orchestrators):
            return ""  # its orchestrator stops it
        return f"not cancelled: {folder.id} runs on {process.get('host', 'an unknown host')}; stop it there"
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(process["pid"]), signal.SIGTERM)
    return ""


def _fate(orchestrator: Orchestrator, others: int) -> str:
    """What becomes of the process that started the jobs."""
    where = "" if orchestrator.here else f" on {orchestrator.host}"
    if not others:
        return f"process {orchestrator.pid}{where}, which ran them, ends as soon as they have saved"
    jobs = "its other job" if others == 1 else f"its {others} other jobs"
    return (
        f"process {orchestrator.pid}{where}, which ran them, continues with {jobs}; `kill {orchestrator.pid}` stops it"
    )


def _jobs(number: int, kind: str = "") -> str:
    return f"1 {kind}job" if number == 1 else f"{number} {kind}jobs"
