"""A table's control: where the encoder that must win does not, no other order in the table means anything."""

from __future__ import annotations

import math
from statistics import mean

from reports.records import Result, Table


def bootstrap_half_width(result: Result) -> float | None:
    """The 95 % half-width of the cell's value from resampling the validation images, averaged over its jobs; None: unknown."""
    widths = [job.metrics.get(f"result.half_width.{result.cell.metric}") for job in result.jobs if result.cell.runs]
    known = [width for width in widths if width is not None and math.isfinite(width)]
    return mean(known) if known and len(known) == len(widths) else None


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
    widths = bootstrap_half_width(cell), bootstrap_half_width(floor)
    if widths[0] is None or widths[1] is None:
        return f"its control, {control.cell} above {control.floor}, was scored without a bootstrap over images"
    noise = math.hypot(widths[0], widths[1])
    if cell.value - floor.value > noise:
        return ""
    return (
        f"{control.cell} ({cell.value:.1f}) is not above {control.floor} ({floor.value:.1f}) by more than the noise of "
        f"the {images(cell)} validation images (\N{PLUS-MINUS SIGN}{noise:.1f})"
    )


def images(result: Result) -> str:
    """How many validation images the cell was scored on, as text; "" if unknown."""
    count = result.jobs[0].metrics.get("result.val_images") if result.jobs else None
    return f"{count:.0f}" if count is not None and math.isfinite(count) else ""
