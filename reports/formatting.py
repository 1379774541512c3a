"""Numbers as words: signs, decimals as the paper prints them, and a little more where ours would vanish."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.records import Result, Table

MINUS, PLUS_MINUS = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"
HARDWARE = ("h", "MB")  # units of what the machine costs, not of what was learned


def number(value: float | None, places: int, sign: bool = False) -> str:
    """`-28.8` with a true minus sign; "" for None."""
    if value is None:
        return ""
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", MINUS)


def printed_places(table: Table, unit: str) -> int:
    """Decimals that the paper prints in this unit in this table; of a score at least one."""
    printed = [r.cell.printed for r in table.results if r.cell.printed is not None and table.unit(r.cell) == unit]
    decimals = [len(str(one).removesuffix(".0").partition(".")[2]) for one in printed]
    return max([0 if unit in HARDWARE else 1, *decimals])


def places(table: Table, result: Result) -> int:
    """Decimals of our value in the cell: as printed; of hours and megabytes enough for two digits that are not nought."""
    unit = table.unit(result.cell)
    usual = printed_places(table, unit)
    if unit not in HARDWARE or not result.value:
        return usual
    return max(usual, min(4, 1 - math.floor(math.log10(abs(result.value)))))


def printed(table: Table, result: Result) -> str:
    """The printed value with the paper's decimals; "" where there is none."""
    return number(result.cell.printed, printed_places(table, table.unit(result.cell)))
