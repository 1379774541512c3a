"""What the jobs took beside what they were estimated to take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reports.cells import Job, Table, unique_jobs


@dataclass(frozen=True)
class Line:
    """Device-hours of finished jobs. `estimated`: None where not one was; `ratio`: over the jobs that were, spent by estimated."""

    scale: str
    stage: str
    kind: str
    jobs: int
    estimated: float | None
    spent: float
    ratio: float | None
    total: bool


def kind_of(job: Job) -> str:
    """`CPU` or `GPU`, by the name of its device."""
    return "CPU" if job.device.endswith("threads") else "GPU"


def lines(shown: Iterable[Table]) -> list[Line]:
    """A line a scale and kind of device, then one for each stage of it."""
    scales: dict[str, list[Table]] = {}
    for table in shown:
        scales.setdefault(table.scale, []).append(table)
    found = []
    for scale, tables in scales.items():
        done = [job for job in unique_jobs(tables) if job.state == "done" and job.hours is not None]
        for kind in sorted({kind_of(job) for job in done}, reverse=True):
            mine = [job for job in done if kind_of(job) == kind]
            found.append(_line(scale, "", kind, mine))
            stages = dict.fromkeys(job.stage for job in mine)
            found += [_line(scale, stage, kind, [job for job in mine if job.stage == stage]) for stage in stages]
    return found


def _line(scale: str, stage: str, kind: str, jobs: list[Job]) -> Line:
    spent = sum(job.hours or 0.0 for job in jobs)
    told = [(job.estimated_hours, job.hours) for job in jobs if job.estimated_hours and job.hours is not None]
    estimated = sum(hours for hours, _ in told) if told else None
    ratio = sum(hours for _, hours in told) / estimated if estimated else None
    return Line(scale, stage, kind, len(jobs), estimated, spent, ratio, not stage)
