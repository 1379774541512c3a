"""What people see of jobs: one line a job, a table that follows them, and MLflow kept up to date meanwhile."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

from jigclu.job_folder import JobFolder, clock
from orchestrate.cost.measured import RATES, Measured
from orchestrate.jobs.slurm_queue import seconds
from orchestrate.jobs.states import HEADLINE, State, progress
from orchestrate.jobs.submissions import current_id

ORDER = ("running", "requeued", "pending", "failed", "lost", "cancelled", "interrupted", "new", "stale", "done")


def more(folder: JobFolder, state: State) -> str:
    """What there is to say of a job in its state: progress, place, reason."""
    status = folder.status
    match state.name:
        case "running":
            parts = [progress(status) if status.get("state") == "running" else "", state.note]
            if state.row and (left := seconds(state.row.left)) is not None:
                parts.append(f"limit in {clock(left)}")
            parts.append(f"on {state.row.nodes}" if state.row and state.row.nodes else "")
        case "requeued":
            parts = [f"at step {status.get('step', 0)}, attempt {len(status.get('attempts', [1]))} is over", state.note]
        case "done" | "stale":
            result = folder.result
            told = [f"{name} {value:.2f}" for name, value in result.get("metrics", {}).items() if name in HEADLINE]
            parts = [*told, f"in {clock(result.get('seconds', 0))}", state.note, graded(folder)]
        case _:
            parts = [state.note]
    return "  ".join(part for part in parts if part and part != "None")


def graded(folder: JobFolder) -> str:
    """`1.12 times the estimate`; "" where there was none."""
    path = folder.store / RATES
    ratio = _measured(folder.store, path.stat().st_mtime_ns).grade(folder.id) if path.exists() else None
    return f"{ratio:.2f} times the estimate" if ratio else ""


@lru_cache(maxsize=1)
def _measured(store: Path, _stamp: int) -> Measured:
    return Measured(store)


def line(folder: JobFolder, state: State, name: str = "") -> str:
    told, given = name or folder.job.get("name", ""), state.slurm_id or current_id(folder) or "-"
    return f"{state.name:11s} {folder.id}  {given:>10s}  {told}  {more(folder, state)}".rstrip()


def count_of(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def summary(states: dict[str, State]) -> str:
    count = Counter(state.name for state in states.values())
    return ", ".join(f"{count[name]} {name}" for name in ORDER if count[name])
