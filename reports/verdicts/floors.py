"""The floor under a score: the table's random weights. Cells that do not beat them have learnt nothing to compare."""

from __future__ import annotations

from collections.abc import Sequence

from reports.formatting import number
from reports.records import Result
from reports.verdicts.evidence import Evidence, value_of
from reports.verdicts.outcomes import NOISE, NOTHING, Outcome

LEVEL = 0.05  # one-sided: whether a cell is above its floor


def floors(result: Result, evidence: Evidence) -> list[Result]:
    """The references with random weights that report what the cell reports: in its column, or all if its column has none."""
    cell = result.cell
    found = [
        other
        for other in evidence.table.results
        if other.reference and other.cell.runs and other.cell.method is None and other.cell.report == cell.report
    ]
    return [other for other in found if other.cell.column == cell.column] or found


def doubt(keys: Sequence[str], evidence: Evidence) -> tuple[Outcome, str] | None:
    """Why it is not sure that any of the cells has learnt something, in words. None if the best is above random weights, or if
    no random weights were run.

    Nothing learnt: the best is not above them by more than the choice of validation images explains. Within the noise: it is,
    but other seeds might not be.
    """
    present = [evidence.values[key] for key in keys if key in evidence.values]
    if not present:
        return None
    best = max(present, key=lambda value: value.value)
    if best.key in evidence.table.elsewhere or evidence.results[best.key].cell.cited is not None:
        return None
    doubts: dict[Outcome, str] = {}
    for floor in floors(evidence.results[best.key], evidence):
        value = value_of(floor.cell.key, floor, evidence.table)
        found = evidence.sum([(1.0, best), (-1.0, value)]) if value else None
        if not value or not found or found.unknown:
            continue
        gain, images, noise = found.value, found.images_width(LEVEL), found.width(LEVEL)
        shown = [number(one, best.places) for one in (gain, images, noise)]
        if gain <= images:
            by = f" by more than the noise of {shown[1]}" if images else ""
            doubts.setdefault(NOTHING, f"{best} is not above random weights, {value},{by}".rstrip(","))
        elif gain <= noise:
            of = f"{best} is above random weights, {value}, by {shown[0]}, within the noise of {shown[2]}"
            doubts.setdefault(NOISE, f"{of} ({found.basis})")
    return next(((outcome, doubts[outcome]) for outcome in (NOTHING, NOISE) if outcome in doubts), None)
