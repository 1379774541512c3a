"""What a scale's file knows about its numbers: the spread between seeds, and which comparisons it cannot decide. No torch."""

from __future__ import annotations

from pydantic import Field, ValidationError

from jigclu.config import ConfigError, Strict, error_line
from jigclu.config.base import Positive, PositiveFloat
from orchestrate.planning.overlays import overlay


class Spread(Strict):
    """The standard deviation between seeds of a metric (`report`: `linear.top1`) on a data set (empty: on any), in its unit,
    estimated with `degrees_of_freedom`. `source`: where it was measured."""

    report: str
    data: str = ""
    sd: PositiveFloat
    degrees_of_freedom: Positive
    source: str


class Undecidable(Strict):
    """Cells of an experiment that this scale cannot tell apart, and `why`: a claim that compares them stays undecided."""

    cells: tuple[str, ...] = Field(min_length=2)
    why: str


class ScaleNotes(Strict):
    """`undecidable`: by experiment."""

    spread: tuple[Spread, ...] = ()
    undecidable: dict[str, tuple[Undecidable, ...]] = Field(default_factory=dict)


def scale_notes(scale: str) -> ScaleNotes:
    """The keys `spread` and `undecidable` of experiments/scales/<scale>.yaml. Raises ConfigError."""
    values = overlay("scales", scale)
    try:
        return ScaleNotes.model_validate({name: values[name] for name in ScaleNotes.model_fields if name in values})
    except ValidationError as error:
        raise ConfigError(f"{scale}.yaml: {error_line(error, ScaleNotes)}") from None
