"""The ledger: experiments/*.yaml as typed objects, one file per table or figure of the paper. No torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from jigclu.config import METRICS, ConfigError, Strict, error_line, nearest
from jigclu.config.base import Number
from orchestrate.planning.claims import Claim
from orchestrate.planning.overlays import experiment_files, overlays, read_yaml
from orchestrate.planning.settings import Overlay, check_dotted, check_stages, got


class Layout(Strict):
    """How the table is shown. `plot: lines` draws each row as a curve over its numeric columns."""

    corner: str = ""  # the text in the top left corner
    plot: Literal["bars", "lines"] = "bars"
    x: str = ""  # the label of the x axis


class Cell(Strict):
    """One number that the paper prints, a point of a figure, or (among `references`) a number that it does not print.

    Exactly one of: `report`, `<stage>.<metric>` of the job whose result fills the cell; `cited`, where the paper took
    the number from; `not_applicable`, why there is none. `method`: how the encoder is pretrained, a file in
    experiments/methods; null: random weights, evaluated as random.yaml there says. `read`: a number that the paper shows
    here without printing it: it stands in another table, or was read off the figure. `set`: dotted keys that override
    the recipe; `protocols`: the same for one protocol only, or the reason why the cell does not exist under it. A value
    such as 40% is that share of the scale's value. `not_at`: scales whose tables lack this reference.
    """

    key: str
    row: str
    column: str
    printed: Number | None = None
    read: Number | None = None
    unit: str = ""
    report: str | None = None
    cited: str | None = None
    not_applicable: str | None = None
    method: str | None = "jigclu"
    set: Overlay = Field(default_factory=dict)
    protocols: dict[str, Overlay | str] = Field(default_factory=dict)
    not_at: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        return self.report is not None

    @property
    def resting_state(self) -> str:
        """The state of the cell without any job: `cited`, `not applicable` or `not run`."""
        if self.cited is not None:
            return "cited"
        return "not applicable" if self.not_applicable is not None else "not run"

    @property
    def stage(self) -> str:
        return (self.report or "").split(".", 1)[0]

    @property
    def metric(self) -> str:
        return (self.report or "").split(".", 1)[1]

    def under(self, protocol: str) -> Cell:
        """The cell under that protocol, with `protocols` applied."""
        own = self.protocols.get(protocol, {})
        if isinstance(own, str):
            return self.model_copy(update={"protocols": {}, "report": None, "not_applicable": own})
        return self.model_copy(update={"protocols": {}, "set": {**self.set, **own}})

    @model_validator(mode="after")
    def _one_source(self) -> Cell:
        if sum(field is not None for field in (self.report, self.cited, self.not_applicable)) != 1:
            raise ValueError(f"cell {self.key!r} needs exactly one of report, cited, not_applicable")
        if self.report is not None and "." not in self.report:
            raise ValueError(f"cell {self.key!r}: report must be stage.metric, not {self.report!r}")
        return self


class Control(Strict):
    """Cells, by key, without whose difference the experiment decides nothing: `cell` must be above `floor`."""

    cell: str
    floor: str


class Experiment(Strict):
    """One table or figure. Its file has `columns` and `rows` as in the paper: a cell merges its row and its column, and the
    row overrides the column; a row's `printed` (and `read`) is a list, null if the paper has no number. A column that the
    paper lacks is `added: true`: its cells are references, one for each row that has what it reports."""

    name: str
    title: str
    source: str
    topic: str
    unit: str
    layout: Layout = Layout()
    recipe: dict[str, Overlay]
    cells: tuple[Cell, ...]
    references: tuple[Cell, ...] = ()
    control: Control | None = None
    claims: tuple[Claim, ...] = ()

    @property
    def all_cells(self) -> tuple[Cell, ...]:
        return self.cells + self.references

    def under(self, protocol: str, scale: str) -> Experiment:
        """The experiment with every cell under that protocol, without the references that the scale lacks."""
        there = {"cells": self.cells, "references": [cell for cell in self.references if scale not in cell.not_at]}
        return self.model_copy(
            update={name: tuple(cell.under(protocol) for cell in part) for name, part in there.items()}
        )

    def require_distinct(self, protocol: str) -> None:
        """Raises ConfigError if cells that only `protocols` tells apart are the same under this one."""
        seen: dict[str, Cell] = {}
        for before in self.all_cells:
            cell = before.under(protocol)
            other = seen.setdefault(f"{cell.method} {cell.report} {sorted(cell.set.items())}", before)
            if cell.report and other.protocols != before.protocols:
                raise ConfigError(
                    f"{self.name}: cells {other.key!r} and {before.key!r} are the same under protocol {protocol}; give them "
                    f"values under protocols: {protocol}, or the reason why one does not exist there"
                )

    @property
    def printed_table(self) -> bool:
        return self.name.startswith("table")

    @model_validator(mode="before")
    @classmethod
    def _lay_out(cls, values: Overlay) -> Overlay:
        values = dict(values)
        for part in ("columns", "rows", "references", "cells"):
            entries = values.get(part, [])
            if not isinstance(entries, list | tuple) or not all(isinstance(entry, dict | Cell) for entry in entries):
                raise ValueError(f"{part}: a list of mappings is expected{got(entries)}")
        for part, name in (("columns", "column"), ("rows", "row")):
            for number, entry in enumerate(values.get(part, []), 1):
                _check_entry(f"{part} {number}", name, entry)
        for number, entry in enumerate(values.get("references", []), 1):
            _check_entry(f"references {number}", "", entry)
        columns = values.pop("columns", [])
        added = [_without(column, "added") for column in columns if column.get("added")]
        columns = [column for column in columns if not column.get("added")]
        rows = values.pop("rows", [])
        cells = [*values.get("cells", ()), *(cell for row in rows for cell in _row_cells(row, columns))]
        references = [
            cell
            for row in rows
            for cell in _row_cells(_without(_without(row, "printed"), "read"), added)
            if not cell.keys() & {"cited", "not_applicable"}
        ]
        references += [
            cell
            for reference in values.pop("references", [])
            for cell in ([reference] if "column" in reference else _row_cells(reference, [*columns, *added]))
        ]
        # Random weights have no pretraining whose cost could be reported.
        references = [
            cell
            for cell in references
            if cell.get("method", "") is not None or cell.get("report", "")[:9] != "pretrain."
        ]
        return {**values, "cells": cells, "references": references}

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        keys = [cell.key for cell in self.all_cells]
        if len(keys) != len(set(keys)):
            raise ValueError(f"two cells share the key {next(key for key in keys if keys.count(key) > 1)!r}")
        check_stages("recipe", "", self.recipe)
        if "name" in self.recipe.get("pretrain", {}).get("method", {}):
            raise ValueError("recipe: pretrain.method.name: the method belongs to the cell, as in method: simclr")
        for cell in self.all_cells:
            if cell.report and cell.stage not in self.recipe:
                raise ValueError(f"cell {cell.key!r} reports {cell.report!r}, but the recipe has no such stage")
            if cell.report and (known := METRICS[cell.stage]) and cell.metric not in known:
                raise ValueError(f"cell {cell.key!r} reports {cell.report!r}; {nearest(cell.metric, list(known))}")
        for cell in self.all_cells:
            for protocol, values in {"": cell.set, **cell.protocols}.items():
                if protocol and protocol not in overlays("protocols"):
                    raise ValueError(
                        f"cell {cell.key!r}: unknown protocol {protocol!r}; {nearest(protocol, overlays('protocols'))}"
                    )
                if "pretrain.method.name" in _leaves(values):
                    raise ValueError(f"cell {cell.key!r} sets pretrain.method.name; write method: beside set instead")
                for key in values if isinstance(values, dict) else ():
                    if (stage := key.split(".")[0]) not in self.recipe or "." not in key:
                        raise ValueError(
                            f"cell {cell.key!r} sets {key!r}; {nearest(stage, list(self.recipe))}, each with .key"
                        )
                check_dotted(f"cell {cell.key!r}", values if isinstance(values, dict) else {})
        places = [(cell.row, cell.column) for cell in self.all_cells]
        if len(set(places)) < len(places):
            row, column = next(place for place in places if places.count(place) > 1)
            raise ValueError(f"two cells have the row {row!r} and the column {column!r}")
        if self.layout.plot == "lines" and (odd := [column for _, column in places if not _is_number(column)]):
            raise ValueError(f"column {odd[0]!r} is no number, as layout.plot: lines needs; write plot: bars")
        for cell in self.cells if self.printed_table else ():
            if cell.printed is None and cell.not_applicable is None:
                raise ValueError(f"cell {cell.key!r} has no printed value: it belongs among the references")
        for key in (self.control.cell, self.control.floor) if self.control else ():
            if key not in keys:
                raise ValueError(f"control names the cell {key!r}; {nearest(key, keys)}")
        needed = {key for claim in self.claims for key in claim.cells}
        needed |= {self.control.cell, self.control.floor} if self.control else set()
        for cell in self.all_cells:
            for scale in cell.not_at:
                if scale not in overlays("scales"):
                    raise ValueError(
                        f"cell {cell.key!r}: unknown scale {scale!r}; {nearest(scale, overlays('scales'))}"
                    )
            if cell.not_at and (cell.key in needed or cell in self.cells):
                raise ValueError(f"cell {cell.key!r} has not_at: only a reference that no claim or control names may")
        for claim in self.claims:
            if unknown := [key for key in claim.cells if key not in keys and "/" not in key]:
                raise ValueError(f"claim {claim.text!r} names the cell {unknown[0]!r}; {nearest(unknown[0], keys)}")
        return self


def _leaves(settings: Overlay | str) -> set[str]:
    """The dotted keys of all single values in a cell's settings."""
    if not isinstance(settings, dict):
        return set()
    nested = {key: {f"{key}.{inner}" for inner in _leaves(value)} for key, value in settings.items()}
    return {leaf for key, leaves in nested.items() for leaf in leaves or {key}}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_entry(where: str, needed: str, entry: Overlay) -> None:
    """Raises ValueError unless a row or column has its name and mappings, and a row's printed values are a list."""
    if needed and needed not in entry:
        raise ValueError(f"{where}: {needed} is missing")
    for key in ("set", "protocols"):
        if not isinstance(entry.get(key, {}), dict):
            raise ValueError(f"{where}: {key}: a mapping (lines of `key: value`) is expected{got(entry[key])}")
    for key in ("printed", "read") if needed != "column" and "column" not in entry else ():
        if not isinstance(entry.get(key, []), list):
            raise ValueError(f"{where}: {key}: a list is expected, one value for each column{got(entry[key])}")


def _without(values: Overlay, key: str) -> Overlay:
    return {name: value for name, value in values.items() if name != key}


def _row_cells(row: Overlay, columns: list[Overlay]) -> Iterator[Overlay]:
    """A row of the file as cells: row over column, with `set` and `protocols` merged and the keys joined."""
    row = {"key": row.get("row", ""), **row}
    printed = row.pop("printed", [...] * len(columns))
    read = row.pop("read", [None] * len(columns))
    for verb, values in (("prints", printed), ("reads", read)):
        if len(values) != len(columns):
            raise ValueError(f"row {row.get('row', '')!r} {verb} {len(values)} values for {len(columns)} columns")
    for column, value, seen in zip(columns, printed, read, strict=True):
        if value is None:
            continue
        column = {"key": column["column"], **column}
        cell = {
            **column,
            **row,
            "key": f"{row['key']} {column['key']}".strip(),
            "set": {**column.get("set", {}), **row.get("set", {})},
        }
        both = column.get("protocols", {}), row.get("protocols", {})
        cell["protocols"] = {
            name: _over(both[0].get(name, {}), both[1].get(name, {})) for name in {**both[0], **both[1]}
        }
        if row.keys() & {"cited", "not_applicable"} and "report" not in row:
            cell.pop("report", None)  # the column's
        cell |= {} if seen is None else {"read": seen}
        yield cell if value is ... else {**cell, "printed": value}


def _over(column: Overlay | str, row: Overlay | str) -> Overlay | str:
    return {**column, **row} if isinstance(column, dict) and isinstance(row, dict) else row or column


def _validate(path: Path) -> Experiment:
    values = read_yaml(path)
    if "name" in values:
        raise ConfigError(f"{path.name}: unknown key name: an experiment is named after its file")
    try:
        return Experiment.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        line = error_line(error, Experiment, hidden=("name",), extra=("columns", "rows"))
        raise ConfigError(f"{path.name}: {line}") from None


def load_readable() -> dict[str, Experiment]:
    """The experiments whose files have no mistake: jobs are shown and stopped although somebody edits a file."""
    found = {}
    for path in experiment_files():
        with contextlib.suppress(ConfigError):
            found[path.stem] = _validate(path)
    return found


def topics() -> dict[str, str]:
    """{name: topic} of all experiments; a file with a mistake has its name only."""
    readable = load_readable()
    return {path.stem: readable[path.stem].topic if path.stem in readable else path.stem for path in experiment_files()}


def load_all() -> dict[str, Experiment]:
    """All experiments by name, in the paper's order. Raises ConfigError, one line with the file, for a mistake in one."""
    ledger = {path.stem: _validate(path) for path in experiment_files()}
    owners = {"all": "all experiments", **{name: name for name in ledger if name != "all"}}
    for name, experiment in ledger.items():
        if name == "all" or not experiment.topic.strip():
            raise ConfigError(
                f"{name}.yaml: {'an experiment cannot be called all' if name == 'all' else 'topic is empty'}"
            )
        if (owner := owners.setdefault(experiment.topic, name)) != name:
            raise ConfigError(f"{name}.yaml: topic {experiment.topic!r} already means {owner}; choose another word")
        for claim in experiment.claims:
            _check_cells_elsewhere(name, experiment, claim, ledger)
    return ledger


def _check_cells_elsewhere(name: str, experiment: Experiment, claim: Claim, ledger: dict[str, Experiment]) -> None:
    """Raises ConfigError if the claim names a cell of another experiment that is not there."""
    for key in claim.cells:
        other, slash, cell = key.partition("/")
        if not slash or key in {own.key for own in experiment.all_cells}:
            continue
        if other not in ledger:
            raise ConfigError(f"{name}.yaml: claim {claim.text!r} names {key!r}; {nearest(other, list(ledger))}")
        if cell not in (keys := [own.key for own in ledger[other].all_cells if not own.not_at]):
            raise ConfigError(f"{name}.yaml: claim {claim.text!r} names {key!r}; {nearest(cell, keys)}")


def _by_word(ledger: dict[str, Experiment]) -> dict[str, Experiment]:
    return {**ledger, **{experiment.topic: experiment for experiment in ledger.values()}}


def find_or_none(word: str) -> Experiment | None:
    """The experiment of this name or topic."""
    return _by_word(load_all()).get(word)


def _hint(word: str, by_word: dict[str, Experiment]) -> str:
    """What to write instead of a word that names no experiment."""
    parts = [part.strip() for part in word.split(",")]
    if len(parts) > 1 and all(part in by_word for part in parts):
        return f"separate experiments by spaces: {' '.join(parts)}"
    with_cell = [name for name, experiment in by_word.items() if word in [cell.key for cell in experiment.all_cells]]
    if with_cell:
        return f"it is a cell of {with_cell[0]}: did you mean {with_cell[0]} --cells {word}?"
    return nearest(word, [*by_word, "all"])


def find(words: list[str]) -> list[Experiment]:
    """Experiments by name, by topic, or `all`. Raises ConfigError that names the valid words and the nearest."""
    ledger = load_all()
    by_word = _by_word(ledger)
    found: dict[str, Experiment] = {}
    for word in words:
        if word != "all" and word not in by_word:
            raise ConfigError(f"unknown experiment {word!r}; {_hint(word, by_word)}")
        for experiment in ledger.values() if word == "all" else [by_word[word]]:
            found[experiment.name] = experiment
    return list(found.values())
