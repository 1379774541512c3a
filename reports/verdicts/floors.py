"""The floor under a score: the table's random weights. Cells that do not beat them have learnt nothing to compare."""

from __future__ import annotations

from collections.abc import Sequence

from reports.formatting import number
from reports.records import Result
from reports.verdicts.evidence import Evidence, value_of


def floors(result: Result, evidence: Evidence) -> list[Result]:
    """The references with random weights that report what the cell reports: in its column, or all if its column has none."""
    cell = result.cell
    found = [
        other
        for other in evidence.table.results
        if other.reference and other.cell.runs and other.cell.method is None and other.cell.report == cell.report
    ]
    return [other for other in found if other.cell.column == cell.column] or found


def learns_nothing(keys: Sequence[str], evidence: Evidence) -> str:
    """Why none of the cells has learnt anything, in words: the best does not beat random weights beyond the noise; "" if it
    does, or if no random weights were run."""
    present = [evidence.values[key] for key in keys if key in evidence.values]
    if not present:
        return ""
    best = max(present, key=lambda value: value.value)
    if best.key in evidence.table.elsewhere or evidence.results[best.key].cell.cited is not None:
        return ""
    for floor in floors(evidence.results[best.key], evidence):
        value = value_of(floor.cell.key, floor, evidence.table)
        found = evidence.sum([(1.0, best), (-1.0, value)]) if value else None
        if value and found and not found.unknown and found.value <= found.width():
            noise = f" by more than the noise of {number(found.width(), best.places)}" if found.width() else ""
            return f"{best} is not above random weights, {value},{noise}".rstrip(",")
    return ""
