"""The register of ambiguities: points where paper and code disagree, the chosen reading, and the numbers of both if run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from jigclu.config import ConfigError, Strict, error_line
from orchestrate.planning.overlays import read_yaml_value
from reports.formatting import number, places
from reports.records import Result, Table
from reports.tables import measured_text

REGISTER = Path(__file__).with_name("register.yaml")
MOST = 12  # lines of numbers per point; results.json has every cell


class Entry(Strict):
    """A point in register.yaml. `both`: where the readings are compared: `protocols`, `see <id>`, or cells of experiments."""

    id: str
    what: str
    paper: str
    code: str
    here: str
    both: str | dict[str, tuple[str, ...]] = ""


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
    """Every point of register.yaml, with the numbers about it in the shown tables. Raises ConfigError, in one line."""
    found = []
    for entry in read_entries(REGISTER):
        if isinstance(entry.both, dict):
            lines = side_by_side(shown, entry.both)
        else:
            lines = by_protocol(shown) if entry.both else []
            lines = (
                [f"{entry.both}: the protocols differ in both points"] if lines and entry.both != "protocols" else lines
            )
        more = [f"and {len(lines) - MOST} more, in results.json"] if len(lines) > MOST else []
        found.append(Point(**entry.model_dump(exclude={"both"}), numbers=(*lines[:MOST], *more)))
    return found


def read_entries(path: Path) -> list[Entry]:
    """The points of a register. Raises ConfigError, one line that names the point and the key."""
    try:
        entries = TypeAdapter(list[Entry]).validate_python(read_yaml_value(path))
    except ValidationError as error:
        raise ConfigError(error_line(error, Entry, path.name)) from None
    for entry in entries:
        named = isinstance(entry.both, dict) or entry.both in ("", "protocols") or entry.both.startswith("see ")
        if not named:
            raise ConfigError(f"{path.name}: {entry.id}: both must be protocols, see <id>, or cells of experiments")
    return entries


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


def side_by_side(shown: Iterable[Table], wanted: Mapping[str, Iterable[str]]) -> list[str]:
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
