"""A table's control: where the encoder that must win does not, no other order in the table means anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean, quantiles
from urllib.parse import unquote, urlparse

from reports.records import Job, Result, Table

RESAMPLED = (
    "resampled.json"  # of a job with a bootstrap: metric -> its value in every resample of the validation images
)


def uninformative(table: Table) -> str:
    """Why the table decides nothing, in words that follow a colon; "" if its control is above the floor, or it has none.

    The difference must be larger than the noise of the bootstrap over images. At a scale with the paper's own settings a
    control that has not run is no objection: its order is not in doubt there.
    """
    control = table.experiment.control
    if control is None:
        return ""
    found = {result.cell.key: result for result in table.results}
    cell, floor = found.get(control.cell), found.get(control.floor)
    if cell is None or floor is None or cell.value is None or floor.value is None:
        return "" if table.comparable else f"its control, {control.cell} above {control.floor}, has not been run"
    noise = difference_half_width(cell, floor)
    if noise is None:
        return f"its control, {control.cell} above {control.floor}, was scored without a bootstrap over images"
    if cell.value - floor.value > noise:
        return ""
    return (
        f"{control.cell} ({cell.value:.1f}) is not above {control.floor} ({floor.value:.1f}) by more than the noise of "
        f"the {_images(cell)} validation images (\N{PLUS-MINUS SIGN}{noise:.1f})"
    )


def difference_half_width(one: Result, other: Result) -> float | None:
    """The 95 % half-width of the cells' difference from resampling the validation images; None: unknown.

    Resample by resample where both cells' jobs have theirs on this machine, seed by seed: images that are hard for both
    cancel. Else from the two half-widths, as if the cells had been scored on different images.
    """
    if pairs := _pairs(one, other):
        cuts = quantiles(pairs, n=40)
        return (cuts[-1] - cuts[0]) / 2
    widths = half_width(one), half_width(other)
    return None if widths[0] is None or widths[1] is None else math.hypot(widths[0], widths[1])


def half_width(result: Result) -> float | None:
    """The 95 % half-width of the cell's value from resampling the validation images, averaged over its jobs; None: unknown."""
    widths = [job.metrics.get(f"result.half_width.{result.cell.metric}") for job in result.jobs if result.cell.runs]
    known = [width for width in widths if width is not None and math.isfinite(width)]
    return fmean(known) if known and len(known) == len(widths) else None


def _pairs(one: Result, other: Result) -> list[float]:
    """The difference in every resample, averaged over the shared seeds; empty if the jobs cannot be paired."""
    others = {job.seed: job for job in other.jobs}
    differences: list[list[float]] = []
    for job in one.jobs:
        opposite = others.get(job.seed)
        if opposite is None or job.fingerprint != opposite.fingerprint:
            return []
        values = _resampled(job, one.cell.metric), _resampled(opposite, other.cell.metric)
        if not values[0] or len(values[0]) != len(values[1]):
            return []
        differences.append([a - b for a, b in zip(*values, strict=True)])
    return [fmean(at) for at in zip(*differences, strict=True)]


def _resampled(job: Job, metric: str) -> list[float]:
    """The metric in every resample; empty if the file is not on this machine or has none."""
    address = urlparse(job.uri)
    if address.scheme not in ("", "file"):
        return []
    try:
        values = json.loads((Path(unquote(address.path)) / RESAMPLED).read_bytes())[metric]
        return [float(value) for value in values]
    except (OSError, ValueError, KeyError, TypeError):  # a value is null where a resample has no such object
        return []


def _images(result: Result) -> str:
    """How many validation images the cell was scored on, as text; "" if unknown."""
    count = result.jobs[0].metrics.get("result.val_images") if result.jobs else None
    return f"{count:.0f}" if count is not None and math.isfinite(count) else ""
