"""What the jobs took beside what they were estimated to take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrate.cost.measured import device_kind
from reports.records import Job, Table, unique_jobs


@dataclass(frozen=True)
class Line:
    """Device-hours of finished jobs: `spent` of all; of the `graded`, which were estimated, `estimated` and what they `took`."""

    scale: str
    stage: str
    kind: str
    jobs: int
    spent: float
    graded: int
    estimated: float
    took: float
    total: bool


def kind_of(job: Job) -> str:
    """`CPU` or `GPU`, by the name of its device."""
    return device_kind(job.device)


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
    estimated, took = (sum(pair[place] for pair in told) for place in (0, 1))
    return Line(scale, stage, kind, len(jobs), spent, len(told), estimated, took, not stage)
