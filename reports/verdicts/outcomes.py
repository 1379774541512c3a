"""The outcomes of a claim: their words, their CSS class, and a checked claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrate.planning.claims import Claim

Outcome = Literal["holds", "fails", "within the noise", "not run", "not decidable here", "nothing learnt"]
HOLDS: Outcome = "holds"
FAILS: Outcome = "fails"
NOISE: Outcome = "within the noise"
NOT_RUN: Outcome = "not run"
UNDECIDABLE: Outcome = "not decidable here"
NOTHING: Outcome = "nothing learnt"
OUTCOMES: tuple[Outcome, ...] = (HOLDS, FAILS, NOISE, NOT_RUN, UNDECIDABLE, NOTHING)
MEANING: dict[Outcome, str] = {
    HOLDS: "the numbers show it beyond the noise",
    FAILS: "the numbers contradict it beyond the noise",
    NOISE: "the numbers, or the gain over random weights, differ by less than the noise",
    NOT_RUN: "a cell that it needs has no number yet",
    UNDECIDABLE: "these runs cannot decide it: see the reason",
    NOTHING: "none of its cells is above random weights by more than the choice of images explains",
}


def css_class(outcome: Outcome) -> str:
    """`not-run`: the outcome as a CSS class."""
    return outcome.replace(" ", "-")


@dataclass(frozen=True)
class CheckedClaim:
    """A claim and its outcome. `reason`: one sentence with the measured numbers."""

    claim: Claim
    outcome: Outcome
    reason: str
