"""Claims: sentences that the paper draws from cells, written so that a program can judge them. No torch.

A claim is one relation between cells (by key). Reports judge it; see reports/verdicts.py for what holds, fails and open mean.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

RELATIONS = ("order", "best", "difference", "ratio", "reaches", "below")


class Difference(BaseModel):
    """`more` exceeds `less`; `by`: by how much the paper says, in the cells' unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    more: str
    less: str
    by: float | None = None


class Ratio(BaseModel):
    """`of` is at most `at_most` times `to` (time, memory)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    of: str
    to: str
    at_most: float = Field(gt=0)


class Reaches(BaseModel):
    """Of `series` (in order), the first cell that comes up to `target` is `at` or a later one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    target: str
    series: tuple[str, ...]
    at: str


class Below(BaseModel):
    """`cell` stays under `limit`: for scores that the paper calls trivial, a limit between it and a useful one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cell: str
    limit: float


class Claim(BaseModel):
    """One sentence with its place in the paper and just one relation.

    `order`: each cell exceeds the next. `best`: the first cell exceeds every other one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    text: str
    source: str
    order: tuple[str, ...] | None = None
    best: tuple[str, ...] | None = None
    difference: Difference | None = None
    ratio: Ratio | None = None
    reaches: Reaches | None = None
    below: Below | None = None

    @property
    def relation(self) -> str:
        return next(name for name in RELATIONS if getattr(self, name) is not None)

    @property
    def cells(self) -> tuple[str, ...]:
        """The keys of the cells that decide it."""
        match self.relation:
            case "order" | "best":
                return getattr(self, self.relation)
            case "difference":
                return (self.difference.more, self.difference.less) if self.difference else ()
            case "ratio":
                return (self.ratio.of, self.ratio.to) if self.ratio else ()
            case "reaches":
                return (self.reaches.target, *self.reaches.series) if self.reaches else ()
            case _:
                return (self.below.cell,) if self.below else ()

    @model_validator(mode="after")
    def _one_relation(self) -> Claim:
        found = [name for name in RELATIONS if getattr(self, name) is not None]
        if len(found) != 1:
            raise ValueError(f"claim {self.text!r} needs just one of {', '.join(RELATIONS)}, it has {found or 'none'}")
        return self
