"""Claims: sentences that the paper draws from cells, written so that a program can check them. No torch.

A claim is one relation between cells (by key; a cell of another experiment as `table1/JigClu`). reports/verdicts checks
it and defines the outcomes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from jigclu.config import Strict, nearest
from jigclu.config.base import Number, PositiveFloat


class Order(Strict):
    """Each cell exceeds the next."""

    kind: Literal["order"] = "order"
    cells: tuple[str, ...]


class Best(Strict):
    """The first cell exceeds every other one."""

    kind: Literal["best"] = "best"
    cells: tuple[str, ...]


class Difference(Strict):
    """`more` exceeds `less`; `by`: the amount that the paper states, in the cells' unit."""

    kind: Literal["difference"] = "difference"
    more: str
    less: str
    by: Number | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        return self.more, self.less


class Ratio(Strict):
    """`of` is at most `at_most` times `to` (time, memory)."""

    kind: Literal["ratio"] = "ratio"
    of: str
    to: str
    at_most: PositiveFloat

    @property
    def cells(self) -> tuple[str, ...]:
        return self.of, self.to


class Reaches(Strict):
    """`series` (in order) reaches `target`, and the first of its cells that does is `at` or a later one."""

    kind: Literal["reaches"] = "reaches"
    target: str
    series: tuple[str, ...]
    at: str

    @model_validator(mode="after")
    def _at_in_series(self) -> Reaches:
        if self.at not in self.series:
            raise ValueError(f"at: {self.at!r} is not in the series; {nearest(self.at, self.series)}")
        return self

    @property
    def cells(self) -> tuple[str, ...]:
        return self.target, *self.series


class Below(Strict):
    """`cell` is below `limit`: for scores that the paper calls trivial, a limit between such a score and a useful one."""

    kind: Literal["below"] = "below"
    cell: str
    limit: Number

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.cell,)


class Within(Strict):
    """`a` and `b` are comparable: they differ by at most `margin`, in the cells' unit."""

    kind: Literal["within"] = "within"
    a: str
    b: str
    margin: PositiveFloat

    @property
    def cells(self) -> tuple[str, ...]:
        return self.a, self.b


class Gap(Strict):
    """A difference of differences: the first cell of `larger` exceeds its second by more than that of `smaller`."""

    kind: Literal["gap"] = "gap"
    larger: tuple[str, str]
    smaller: tuple[str, str]

    @property
    def cells(self) -> tuple[str, ...]:
        return self.larger + self.smaller


Relation = Order | Best | Difference | Ratio | Reaches | Below | Within | Gap
RELATIONS = {relation.model_fields["kind"].default: relation for relation in get_args(Relation)}


class Claim(Strict):
    """One sentence with its place in the paper and exactly one relation.

    In an experiment file the relation's kind is a key: `order: [m=2, m=3]`, `difference: {more: a, less: b}`. `note`: what
    a reader must know about the sentence itself, such as that the paper's own numbers contradict it.
    """

    text: str
    source: str
    note: str = ""
    relation: Annotated[Relation, Field(discriminator="kind")]

    @property
    def cells(self) -> tuple[str, ...]:
        """The keys of the cells that decide it."""
        return self.relation.cells

    @model_validator(mode="before")
    @classmethod
    def _one_relation(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "relation" in values:
            return values
        found = [name for name in RELATIONS if values.get(name) is not None]
        if len(found) != 1:
            text, kinds = values.get("text"), ", ".join(RELATIONS)
            raise ValueError(f"claim {text!r} needs exactly one of {kinds}; it has {', '.join(found) or 'none'}")
        content = values[found[0]]
        relation = content if isinstance(content, dict) else {"cells": content}
        others = {name: value for name, value in values.items() if name not in RELATIONS}
        return {**others, "relation": {**relation, "kind": found[0]}}

    @model_validator(mode="after")
    def _compares(self) -> Claim:
        if twice := [key for key in self.cells if self.cells.count(key) > 1]:
            raise ValueError(f"claim {self.text!r} names the cell {twice[0]!r} twice")
        if len(self.cells) < 2 and not isinstance(self.relation, Below):
            raise ValueError(f"claim {self.text!r} compares fewer than two cells")
        return self
