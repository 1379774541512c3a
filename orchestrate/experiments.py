"""The ledger: experiments/*.yaml as typed objects. One file a table or figure of the paper. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jigclu.config import STAGES, ConfigError, nearest

ROOT = Path(__file__).resolve().parent.parent / "experiments"
Overlay = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Layout(_Strict):
    """How the paper lays the table out: the corner's words."""

    corner: str = ""


class Cell(_Strict):
    """One number that the paper prints (or, among `references`, one of ours that it does not).

    `report`: `<stage>.<metric>` of the job whose result fills the cell. `set`: dotted keys laid over the recipe;
    `<stage>: null` takes that stage out of the recipe.
    """

    key: str
    row: str
    column: str
    report: str
    printed: float | None = None
    set: Overlay = Field(default_factory=dict)

    @property
    def stage(self) -> str:
        return self.report.split(".", 1)[0]

    @property
    def metric(self) -> str:
        return self.report.split(".", 1)[1]


class Experiment(_Strict):
    name: str
    title: str
    source: str
    topic: str
    unit: str
    layout: Layout = Layout()
    recipe: dict[str, Overlay]
    cells: tuple[Cell, ...]
    references: tuple[Cell, ...] = ()

    @property
    def all_cells(self) -> tuple[Cell, ...]:
        return self.cells + self.references

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        keys = [cell.key for cell in self.all_cells]
        if len(keys) != len(set(keys)):
            raise ValueError("two cells share a key")
        for stage in self.recipe:
            if stage not in STAGES:
                raise ValueError(f"unknown stage {stage!r} in recipe; {nearest(stage, list(STAGES))}")
        for cell in self.all_cells:
            if cell.stage not in self.recipe:
                raise ValueError(f"cell {cell.key!r} reports {cell.report!r}, a stage that the recipe lacks")
        for cell in self.cells:
            if cell.printed is None:
                raise ValueError(f"cell {cell.key!r} has no printed value: it belongs among the references")
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. ConfigError (one line, with the place) where it is not one."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping is expected, this is a {type(values).__name__}")
    return values


def _validate(path: Path) -> Experiment:
    try:
        return Experiment.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def every() -> dict[str, Experiment]:
    """All experiments by name, in the paper's order."""
    paths = sorted(ROOT.glob("*.yaml"), key=lambda path: (path.stem.rstrip("0123456789") != "table", path.stem))
    return {path.stem: _validate(path) for path in paths}


def find(words: list[str]) -> list[Experiment]:
    """Experiments by name, by topic, or `all`. ConfigError names the valid words and the nearest."""
    ledger = every()
    by_word = {**ledger, **{experiment.topic: experiment for experiment in ledger.values()}}
    found: dict[str, Experiment] = {}
    for word in words:
        if word != "all" and word not in by_word:
            raise ConfigError(f"unknown experiment {word!r}; {nearest(word, [*by_word, 'all'])}")
        for experiment in ledger.values() if word == "all" else [by_word[word]]:
            found[experiment.name] = experiment
    return list(found.values())


def overlays(kind: str) -> list[str]:
    """Names of the overlays of a kind: `scales` or `protocols`."""
    return sorted(path.stem for path in (ROOT / kind).glob("*.yaml"))


def overlay(kind: str, name: str) -> Overlay:
    """The overlay's mapping. ConfigError names the valid ones."""
    if name not in overlays(kind):
        raise ConfigError(f"unknown {kind[:-1]} {name!r}; {nearest(name, overlays(kind))}")
    return read_yaml(ROOT / kind / f"{name}.yaml")
