"""Job status display: one line per job, and counts per state."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.job_folder import JobFolder, duration
from orchestrate.clusters import visible_gpus
from orchestrate.cost.measured import RATES, Measured
from orchestrate.cost.remaining import in_words, seconds_left
from orchestrate.jobs.orchestrators import live
from orchestrate.jobs.planned import plan_from_folders
from orchestrate.jobs.slurm_queue import parse_duration
from orchestrate.jobs.spent import took
from orchestrate.jobs.states import ACTIVE, State, headline, progress
from orchestrate.jobs.submissions import current_id, submission

ORDER = ("running", "requeued", "pending", "failed", "lost", "cancelled", "interrupted", "new", "stale", "done")


def describe(folder: JobFolder, state: State, name: str = "") -> str:
    """One line: state, job id, SLURM id, name and details."""
    name, slurm_id = name or folder.job.get("name", ""), state.slurm_id or current_id(folder) or "-"
    return f"{state.name:11s} {folder.id}  {slurm_id:>10s}  {name}  {details(folder, state)}".rstrip()


def details(folder: JobFolder, state: State) -> str:
    """The details that matter in this state: progress, node, metrics, reason."""
    status = folder.status
    match state.name:
        case "running":
            parts = [progress(status) if status.get("state") == "running" else "", state.note]
            if state.row and (left := parse_duration(state.row.left)) is not None:
                parts.append(f"limit in {duration(left)}")
            parts.append(f"on {state.row.nodes}" if state.row and state.row.nodes else "")
        case "requeued":
            parts = [f"at step {status.get('step', 0)}, attempt {len(status.get('attempts', [1]))} is over", state.note]
        case "done" | "stale":
            parts = [headline(folder.result), f"in {took(folder)}" if took(folder) else "", state.note]
        case _:
            parts = [state.note]
    return "  ".join(part for part in parts if part and part != "None")


def time_left(folders: list[JobFolder], states: dict[str, State]) -> str:
    """`about 2 h 05 min left`, a lower bound on SLURM; "" if no job is active or waits for an orchestrator.

    From the estimates that were recorded when the jobs were submitted, and from what running jobs report.
    """
    orchestrators = live(folders[0].store) if folders else []
    waiting = {job_id for orchestrator in orchestrators for job_id in orchestrator.jobs}
    wanted = [folder for folder in folders if states[folder.id].name in ACTIVE or folder.id in waiting]
    wanted = [folder for folder in wanted if not folder.done]
    if not wanted:
        return ""
    slurm = [folder for folder in wanted if states[folder.id].slurm_id]
    jobs = {folder.id: (_estimated_hours(folder), tuple(folder.job.get("upstream", []))) for folder in wanted}
    running = {folder.id: folder.status for folder in wanted if states[folder.id].name == "running"}
    at_once = len(wanted) if slurm else max(sum(orchestrator.slots for orchestrator in orchestrators), len(running))
    words = in_words(seconds_left(jobs, running, at_once))
    return f"{words}, waiting in the queue not counted" if slurm else words


def _estimated_hours(folder: JobFolder) -> float:
    """Wall time; as recorded at submission, else as a submission would record it now."""
    marker = submission(folder)
    if "estimate_hours" in marker:
        return float(marker["estimate_hours"] / (marker.get("ranks") or 1) / (marker.get("share") or 1.0))
    job, path = folder.job, folder.store / RATES
    try:
        planned = plan_from_folders([folder]).jobs[folder.id]
    except (ConfigError, KeyError):  # of a different code version
        return 0.0
    kind = "GPU" if visible_gpus() or job.get("scale") == "paper" else "CPU"
    return _measured(folder.store, path.stat().st_mtime_ns if path.exists() else 0).hours(planned, kind)[0]


@lru_cache(maxsize=1)
def _measured(store: Path, _mtime_ns: int) -> Measured:
    return Measured(store, "local")


def job_count(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def summary(states: dict[str, State]) -> str:
    count = Counter(state.name for state in states.values())
    return ", ".join(f"{count[name]} {name}" for name in ORDER if count[name])
