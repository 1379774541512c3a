"""Device-hours of the jobs, estimated and spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrate.jobs.spent import device_kind
from reports.records import Job, Table, unique_jobs


@dataclass(frozen=True)
class Line:
    """Device-hours of finished jobs. `spent`: by all `jobs`; `graded`: how many of them had an estimate, with `estimated`
    their sum and `took` what these spent; `total`: the line sums up a scale's stages.
    """

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
    """A line per scale and kind of device, then one for each of its stages."""
    scales: dict[str, list[Table]] = {}
    for table in shown:
        scales.setdefault(table.scale, []).append(table)
    found = []
    for scale, tables in scales.items():
        done = [job for job in unique_jobs(tables) if job.state == "done" and job.hours is not None]
        for kind in sorted({kind_of(job) for job in done}, reverse=True):
            jobs = [job for job in done if kind_of(job) == kind]
            found.append(_line(scale, "", kind, jobs))
            stages = dict.fromkeys(job.stage for job in jobs)
            found += [_line(scale, stage, kind, [job for job in jobs if job.stage == stage]) for stage in stages]
    return found


def _line(scale: str, stage: str, kind: str, jobs: list[Job]) -> Line:
    graded = [job for job in jobs if job.estimated_hours and job.hours is not None]
    return Line(
        scale=scale,
        stage=stage,
        kind=kind,
        jobs=len(jobs),
        spent=sum(job.hours or 0.0 for job in jobs),
        graded=len(graded),
        estimated=sum(job.estimated_hours or 0.0 for job in graded),
        took=sum(job.hours or 0.0 for job in graded),
        total=not stage,
    )
