"""The register of ambiguities: points where paper and code disagree, the chosen reading, and the numbers of both if run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reports.formatting import number, places
from reports.records import Result, Table
from reports.tables import measured_text

MOST = 12  # lines of numbers per point; results.json has every cell


@dataclass(frozen=True)
class Point:
    """`numbers`: lines such as `table8 (mini, official): m=2 46.2, m=3 40.1`."""

    id: str
    what: str
    paper: str
    code: str
    here: str
    numbers: tuple[str, ...]


def points(shown: list[Table]) -> list[Point]:
    """Every point of register.yaml, with the numbers about it in the shown tables."""
    entries: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("register.yaml").read_text())
    found = []
    for entry in entries:
        both = entry.pop("both", {})
        if isinstance(both, str) and both.startswith("see "):
            lines = [f"{both}: the protocols differ in both points"] if by_protocol(shown) else []
        else:
            lines = by_protocol(shown) if both == "protocols" else side_by_side(shown, both)
        more = [f"and {len(lines) - MOST} more, in results.json"] if len(lines) > MOST else []
        found.append(Point(**{key: str(value) for key, value in entry.items()}, numbers=(*lines[:MOST], *more)))
    return found


def by_protocol(shown: Iterable[Table]) -> list[str]:
    """A line per cell that has a value under both protocols at one scale."""
    found: dict[tuple[str, str, str], dict[str, tuple[Table, Result]]] = {}
    for table in shown:
        for result in table.results:
            if result.value is not None and result.cell.method == "jigclu" and not table.variant:
                key = table.scale, table.experiment.name, result.cell.key
                found.setdefault(key, {})[table.protocol] = table, result
    return [
        f"{name} {cell} at {scale}: official {measured_text(*by['official'])}, paper {measured_text(*by['paper'])}"
        for (scale, name, cell), by in found.items()
        if {"official", "paper"} <= set(by)
    ]


def side_by_side(shown: Iterable[Table], wanted: dict[str, list[str]]) -> list[str]:
    """A line per table with the values of its wanted cells; none if fewer than two have a value. `wanted`: experiment -> cells."""
    lines = []
    for table in shown:
        results = {result.cell.key: result for result in table.results if result.value is not None}
        chosen = [results[key] for key in wanted.get(table.experiment.name, ()) if key in results]
        if len(chosen) > 1:
            each = ", ".join(f"{result.cell.key} {number(result.value, places(table, result))}" for result in chosen)
            under = f"{table.scale}, {table.protocol}{', ' + table.variant if table.variant else ''}"
            lines.append(f"{table.experiment.name} ({under}): {each}")
    return lines
