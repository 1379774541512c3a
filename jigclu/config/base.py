"""What every strict schema is made of. No torch."""

from __future__ import annotations

import difflib
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class ConfigError(ValueError):
    """A user's mistake in a config: one line, naming the valid choices and the nearest."""


def nearest(word: str, choices: list[str]) -> str:
    """`valid: a, b, c; did you mean b?`: the tail of every error about a name."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"valid: {', '.join(sorted(choices))}" + (f"; did you mean {close[0]}?" if close else "")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1]:
        raise ValueError(f"two positive numbers, the smaller first, are expected, not {values}")
    return values


Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
