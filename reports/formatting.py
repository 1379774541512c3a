"""Numbers as text: signs, and as many decimals as the paper prints, or more if a measured value would round to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports.records import Result, Table

MINUS, PLUS_MINUS = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"
HARDWARE = ("h", "MB")  # units of quantities that depend on the machine
COUNTED = ("passes", "GMAC")  # units of quantities that follow from the recipe


def number(value: float | None, places: int, sign: bool = False) -> str:
    """`-28.8` with a true minus sign; "" for None."""
    if value is None:
        return ""
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", MINUS)


def listed(names: Sequence[str]) -> str:
    """The names with commas between them, or semicolons if a name has a comma itself: `random; random, BN calibrated`."""
    return ("; " if any("," in name for name in names) else ", ").join(names)


def printed_places(table: Table, unit: str) -> int:
    """Decimals that the paper prints in this unit in this table; at least one for a score."""
    printed = [r.cell.printed for r in table.results if r.cell.printed is not None and table.unit(r.cell) == unit]
    decimals = [len(str(value).removesuffix(".0").partition(".")[2]) for value in printed]
    return max([0 if unit in HARDWARE + COUNTED else 1, *decimals])


def places(table: Table, result: Result) -> int:
    """Decimals of the measured value: as printed; for hours and megabytes enough for two significant digits, for counts
    three."""
    unit = table.unit(result.cell)
    usual = printed_places(table, unit)
    if unit not in HARDWARE + COUNTED or not result.value or (unit in COUNTED and result.value == int(result.value)):
        return usual
    digits = 1 if unit in HARDWARE else 2
    return max(usual, min(4, digits - math.floor(math.log10(abs(result.value)))))


def printed(table: Table, result: Result) -> str:
    """The printed value with the paper's decimals; "" if there is none."""
    return number(result.cell.printed, printed_places(table, table.unit(result.cell)))
