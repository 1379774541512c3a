"""Results as samples of the noise model: which noise a cell's number has, and what is comparable at its scale."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from orchestrate.planning.experiments import Cell
from orchestrate.planning.scale_notes import scale_notes
from reports.formatting import COUNTED, HARDWARE
from reports.records import Job, Result
from reports.statistics.noise import NORMAL, Pool, Recorded, Sample, pool


def kind(cell: Cell, job: Job | None) -> str:
    """`linear.top1 imagenet1k/10percent`: cells of one kind share the spread between seeds."""
    params = job.params if job else {}
    names = (params.get("data.name"), params.get("data.subset"))
    data = "/".join(name for name in names if name not in (None, "", "null"))
    return f"{cell.report} {data}".strip()


def sample(result: Result, unit: str) -> Sample | None:
    """The cell's numbers by seed; None if it has none."""
    if result.value is None:
        return None
    cell, values = result.cell, [value for value in result.values if value is not None]
    if len(values) != len(result.values) or not values:
        values = [result.value]
    seeds = tuple(result.seeds) if len(result.seeds) == len(values) else tuple(range(len(values)))
    nature = "machine" if unit in HARDWARE else "exact" if unit in COUNTED else "score"
    first = result.jobs[0] if result.jobs else None
    percent, right = unit.startswith("%"), _right(result) if cell.metric == "top1" else None
    data = first.fingerprint if first else ""
    return Sample(tuple(values), seeds, _images(result, unit), kind(cell, first), percent, nature, right, data)  # type: ignore[arg-type]


def _right(result: Result) -> np.ndarray | None:
    """For each validation image, the percentage of the cell's jobs that have it right; None if a job does not say so, or if
    they were measured on different images."""
    jobs = result.jobs
    counts = {int(job.metrics.get("result.val_images") or 0) for job in jobs}
    if len(jobs) != len(result.values) or len(counts) != 1 or len({job.fingerprint for job in jobs}) != 1:
        return None
    count = counts.pop()
    bits = [np.unpackbits(np.frombuffer(job.correct, np.uint8)) for job in jobs]
    if not count or any(not count <= len(one) < count + 8 for one in bits):
        return None
    return 100.0 * np.mean([one[:count] for one in bits], axis=0)


def _images(result: Result, unit: str) -> float | None:
    """Variance of the cell's mean by the choice of validation images: of a percentage the binomial one, of AP that of its
    bootstrap; 0 for other scores, whose noise is that of their seeds; None if it should be known and is not."""
    metrics = [job.metrics for job in result.jobs]
    if unit.startswith("%"):
        counts = [
            count for count in (one.get("result.val_images") for one in metrics) if count and math.isfinite(count)
        ]
        share = (result.value or 0.0) / 100
        return 1e4 * share * (1 - share) / min(counts) if counts and 0 <= share <= 1 else None
    if result.cell.stage in ("detect", "dense"):
        widths = [one.get(f"result.half_width.{result.cell.metric}") for one in metrics]
        known = [width for width in widths if width is not None and math.isfinite(width)]
        return (math.fsum(known) / len(known) / NORMAL) ** 2 if known and len(known) == len(widths) else None
    return 0.0


def scale_pool(results: Iterable[tuple[Result, str]], scale: str) -> Pool:
    """The spread between seeds at a scale, from every trained cell (with its unit) once, and from what the scale records."""
    samples: dict[tuple[str, ...], Sample] = {}
    for result, unit in results:
        found = sample(result, unit) if result.cell.runs and result.cell.method else None
        if found:
            samples[(result.cell.report or "", *(job.job for job in result.jobs))] = found
    recorded = tuple(
        Recorded(f"{one.report} {one.data}".strip(), one.sd, one.degrees_of_freedom, one.source)
        for one in scale_notes(scale).spread
    )
    return pool(samples.values(), recorded)
