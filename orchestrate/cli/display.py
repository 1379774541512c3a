"""Job status display: one line per job, and counts per state."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

from jigclu.job_folder import JobFolder, duration
from orchestrate.cost.measured import RATES, Measured
from orchestrate.jobs.slurm_queue import parse_duration
from orchestrate.jobs.states import State, headline, progress
from orchestrate.jobs.submissions import current_id

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
            result = folder.result
            took = f"in {duration(result.get('seconds', 0))}"
            parts = [headline(result), took, state.note, estimate_ratio(folder)]
        case _:
            parts = [state.note]
    return "  ".join(part for part in parts if part and part != "None")


def estimate_ratio(folder: JobFolder) -> str:
    """`1.12 times the estimate`; "" if there was no estimate."""
    path = folder.store / RATES
    ratio = _measured(folder.store, path.stat().st_mtime_ns).grade(folder.id) if path.exists() else None
    return f"{ratio:.2f} times the estimate" if ratio else ""


@lru_cache(maxsize=1)
def _measured(store: Path, _mtime_ns: int) -> Measured:
    return Measured(store)


def job_count(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def summary(states: dict[str, State]) -> str:
    count = Counter(state.name for state in states.values())
    return ", ".join(f"{count[name]} {name}" for name in ORDER if count[name])
