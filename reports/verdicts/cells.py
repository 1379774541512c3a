"""The noise of a cell's number, and its verdict against the printed one."""

from __future__ import annotations

from dataclasses import replace

from reports.formatting import COUNTED, HARDWARE, PLUS_MINUS, number, printed_places
from reports.records import Result, Table
from reports.statistics.noise import Estimate, estimate
from reports.verdicts.samples import sample

MARGIN = {"AP": 0.5}  # how near to the printed value is the same, in the cell's unit
USUAL_MARGIN = 1.0
TINY = 1e-9


def cell_noise(result: Result, table: Table) -> Estimate | None:
    """The cell's value with its noise; None if it has no value."""
    found = sample(result, table.unit(result.cell))
    return estimate([(1.0, found)], table.pool) if found else None


def with_noise(result: Result, table: Table) -> Result:
    """The result with its noise and its verdict."""
    found = cell_noise(result, table)
    if found is None:
        return result
    known = not found.unknown and found.width() > 0
    return replace(
        result,
        noise=found.width() if known else None,
        noise_basis=found.unknown or found.basis,
        verdict=verdict(result, table),
    )


def margin(unit: str) -> float:
    return MARGIN.get(unit, USUAL_MARGIN)


def verdict(result: Result, table: Table) -> str:
    """`reproduced` if the value is within the margin of the printed one, else `off by -1.4`, with `within the noise` if the
    noise of both runs is larger than that; "" if the cell gets no verdict. Noise never makes a cell `reproduced`."""
    unit, difference = table.unit(result.cell), result.difference
    if difference is None or not table.comparable or unit in HARDWARE + COUNTED:
        return ""
    if abs(difference) <= margin(unit) + TINY:
        return "reproduced"
    off = f"off by {number(difference, printed_places(table, unit), sign=True)}"
    found = cell_noise(result, table)
    if found is None or found.unknown:
        return off
    # The printed value is one run with the same noise.
    both = found.width() * (1 + max(1, result.n)) ** 0.5
    return f"{off}, within the noise" if abs(difference) <= both + TINY else off


def legend(table: Table) -> str:
    """What `reproduced` means in this table, with the noise beside it; "" if no cell has a verdict."""
    shown = [result for result in table.results if result.verdict]
    if not shown:
        return ""
    margins = " and ".join(
        dict.fromkeys(f"{PLUS_MINUS}{margin(table.unit(result.cell)):g} {table.unit(result.cell)}" for result in shown)
    )
    return (
        f"reproduced: within {margins} of the printed value, whatever the noise, which stands beside the measured one"
    )
