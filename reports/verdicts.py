"""What our numbers say of the paper's: a verdict on a cell, and whether a claim holds.

Noise is a 95 % half-width. Of a cell with n seeds it is Student's t times std / sqrt(n); of a percentage from one seed the
binomial one on the validation images; time, memory and whatever else comes without any have none and are compared plainly, and
so is a number that the paper cites. Of a difference it is the root of the summed squares.

A cell is judged where it was run as printed (scale `paper`, no override): `reproduced` if it lies within the noise of the printed
value, which is itself one run and so adds that of a single seed; else `off by` so much. Hours and megabytes are the
machine's and never judged.

A claim `holds` or `fails` where the numbers say so beyond the noise, and is `open` where they do not:

- order, best, difference: the one must exceed the other by more than the noise. Cells that are there and contradict make it fail,
  whatever is missing; cells that are there and agree leave it open as long as one is missing.
- difference with `by`: besides, run as printed, it must come up to `by` less the noise. Elsewhere the sign alone is judged.
- ratio: judged at every scale; of time and memory only where both were measured on one kind of device, and not by waiting for data.
- reaches: fails where a cell before `at` comes up to the target by more than the noise; open where one does within the noise.
- below: an absolute number, so it is judged only where run as printed.
- a number that the paper cites takes part only where the others were run as printed; elsewhere it is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise, takewhile
from typing import TYPE_CHECKING, Literal, NamedTuple

from orchestrate.planning.claims import Claim
from reports.formatting import HARDWARE, PLUS_MINUS, number, places, printed_places

if TYPE_CHECKING:
    from reports.records import Result, Table

Outcome = Literal["holds", "fails", "open"]
OUTCOMES: tuple[Outcome, ...] = ("holds", "fails", "open")
TINY = 1e-9  # of decimal numbers in binary: 66.4 - 63.8 is not 2.6
STUDENT = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
)  # 97.5 % quantiles for 2, 3, ... seeds, the last for more
CITED = "cited from another paper: compared at scale paper only"
AS_PRINTED = "at scale paper, run as printed"
Pair = tuple[str, str]


@dataclass(frozen=True)
class Judged:
    """A claim with what our numbers say of it. `reason`: one sentence with the numbers."""

    claim: Claim
    outcome: Outcome
    reason: str


class Value(NamedTuple):
    """A cell's number as a claim weighs it. `noise`: 95 % half-width, nought where unknown; `places`: decimals to show."""

    key: str
    value: float
    noise: float
    places: int

    def __str__(self) -> str:
        return f"{self.key} ({number(self.value, self.places)})"


def noise(result: Result) -> float:
    """95 % half-width of the cell's value, in its unit; nought where nothing is known of it."""
    if result.n > 1 and result.std is not None:
        return STUDENT[min(result.n, len(STUDENT) + 1) - 2] * result.std / math.sqrt(result.n)
    return result.half_width or 0.0


def verdict(result: Result, table: Table) -> str:
    """`reproduced`, `off by -x.x`, or "" where the cell is not judged."""
    unit, difference = table.unit(result.cell), result.difference
    if difference is None or not table.comparable or unit in HARDWARE:
        return ""
    digits = printed_places(table, unit)
    both = noise(result) * math.sqrt(1 + max(1, result.n))  # the mean's, and a single run's, that of the paper
    rounding = 0.5 * 10**-digits
    near = abs(difference) <= max(both, rounding) + TINY
    return "reproduced" if near else f"off by {number(difference, digits, sign=True)}"


def judged(table: Table) -> tuple[Judged, ...]:
    """Every claim of the table's experiment, in the ledger's order."""
    results = {result.cell.key: result for result in table.results}
    return tuple(judge(claim, results, table) for claim in table.experiment.claims)


def tally(tables: Iterable[Table]) -> dict[Outcome, int]:
    """How many of the tables' claims hold, fail and are open."""
    found = Counter(one.outcome for table in tables for one in judged(table))
    return {outcome: found[outcome] for outcome in OUTCOMES}


def judge(claim: Claim, results: Mapping[str, Result], table: Table) -> Judged:
    """The claim against `results`, cell key -> result, all of `table`. What each relation means: this module's docstring."""
    values, missing = _values(claim, results, table)
    match claim.relation:
        case "order" | "best":
            outcome, reason = _ranking(claim, values)
        case "difference":
            outcome, reason = _difference(claim, values, table)
        case "ratio":
            outcome, reason = _ratio(claim, values, results)
        case "reaches":
            outcome, reason = _reaches(claim, values)
        case _:
            outcome, reason = _below(claim, values, table)
    if missing and outcome != "fails":
        reasons = dict.fromkeys(missing.values())
        keys = {why: ", ".join(key for key in missing if missing[key] == why) for why in reasons}
        named = "missing: " + "; ".join(f"{keys[why]} ({why})" for why in reasons)
        outcome, reason = "open", f"so far {reason}; {named}" if reason else named
    return Judged(claim, outcome, f"{reason}.")


# -- what there is to weigh -------------------------------------------------------------------------------------------
def _values(claim: Claim, results: Mapping[str, Result], table: Table) -> tuple[dict[str, Value], dict[str, str]]:
    """The claim's cells that have a number, and why each of the others has none."""
    values, missing = {}, {}
    for key in claim.cells:
        result = results.get(key)
        if result is None:
            missing[key] = "not run"
        elif result.cell.cited is not None and not table.comparable:
            missing[key] = CITED
        elif result.cell.cited is not None and result.cell.printed is not None:
            values[key] = Value(key, result.cell.printed, 0.0, places(table, result))
        elif result.value is None:
            missing[key] = result.lacking
        else:
            values[key] = Value(key, result.value, noise(result), places(table, result))
    return values, missing


def _compare(more: Value, less: Value) -> tuple[Outcome, float, float, str]:
    """Whether `more` exceeds `less`: outcome, difference, its noise, and the words."""
    difference, both = more.value - less.value, math.hypot(more.noise, less.noise)
    digits = max(more.places, less.places)
    apart = number(abs(difference), digits)
    around = f", noise {PLUS_MINUS}{number(both, digits)}" if both else ""
    if abs(difference) <= both + TINY:
        words = f"{more} and {less} differ by {apart}, within the noise of {number(both, digits)}"
        return "open", difference, both, words if both else f"{more} equals {less}"
    if not both and abs(difference) < 0.5 * 10**-digits:  # one seed each of what has no known noise
        return "open", difference, both, f"{more} and {less} do not differ in what is shown"
    above = difference > 0
    words = f"{more} is {'above' if above else 'below'} {less} by {apart}{around}"
    return "holds" if above else "fails", difference, both, words


# -- the relations: (outcome, words) of the cells that are there; no words where nothing can be compared yet ----------------
def _ranking(claim: Claim, values: dict[str, Value]) -> tuple[Outcome, str]:
    keys = claim.cells
    needed: list[Pair] = list(pairwise(keys)) if claim.relation == "order" else [(keys[0], key) for key in keys[1:]]
    # Two of an order that are not neighbours cannot prove it, but they can disprove it where the cell between is missing.
    pairs = list(combinations(keys, 2)) if claim.relation == "order" else needed
    found = {pair: _compare(values[pair[0]], values[pair[1]]) for pair in pairs if all(key in values for key in pair)}
    failing = [pair for pair, one in found.items() if one[0] == "fails"]
    if failing:
        return "fails", "; ".join(found[pair][3] for pair in [one for one in failing if one in needed] or failing)
    near = [found[pair][3] for pair in needed if pair in found and found[pair][0] == "open"]
    if near:
        return "open", "; ".join(near)
    if not found:
        return "open", ""
    closest = min(found.values(), key=lambda one: one[1])[3]
    return "holds", closest if len(found) == 1 else f"the closest pair: {closest}"


def _difference(claim: Claim, values: dict[str, Value], table: Table) -> tuple[Outcome, str]:
    wanted = claim.difference
    if wanted is None or not {wanted.more, wanted.less} <= set(values):
        return "open", ""
    outcome, difference, both, words = _compare(values[wanted.more], values[wanted.less])
    if wanted.by is None:
        return outcome, words
    if not table.comparable:
        return outcome, f"{words}; by how much is judged only {AS_PRINTED}"
    words += f"; claimed is {number(wanted.by, values[wanted.more].places)}"
    return ("fails" if difference < wanted.by - both - TINY else outcome), words


def _ratio(claim: Claim, values: dict[str, Value], results: Mapping[str, Result]) -> tuple[Outcome, str]:
    wanted = claim.ratio
    if wanted is None or not {wanted.of, wanted.to} <= set(values):
        return "open", ""
    of, to = values[wanted.of], values[wanted.to]
    room, both = wanted.at_most * to.value - of.value, math.hypot(of.noise, wanted.at_most * to.noise)
    share = f"{of.value / to.value:.2f}" if to.value else "no"
    words = f"{of} is {share} times {to}, claimed is at most {wanted.at_most:g}"
    jobs = [job for key in (wanted.of, wanted.to) for job in results[key].jobs]
    if len(devices := {job.device for job in jobs}) > 1:
        return "open", f"{words}, measured on {' and '.join(sorted(devices))}"
    if waited := [key for key in (wanted.of, wanted.to) if "loader" in results[key].measured]:
        return "open", f"{words}, but {waited[0]} is limited by the loader"
    if room >= both - TINY:
        return "holds", words
    return ("fails", words) if room < -both - TINY else ("open", f"{words}, within the noise")


def _reaches(claim: Claim, values: dict[str, Value]) -> tuple[Outcome, str]:
    wanted = claim.reaches
    if wanted is None or wanted.target not in values:
        return "open", ""
    target = values[wanted.target]
    near = []
    for key in takewhile(lambda key: key != wanted.at, wanted.series):
        if key not in values:
            continue
        outcome, difference, both, words = _compare(values[key], target)
        if outcome == "holds" or (not both and difference >= -TINY):
            return "fails", f"{words}, before {wanted.at}"
        near += [words] if outcome == "open" else []
    if near:
        return "open", "; ".join(near)
    there = [values[key] for key in wanted.series if key in values]
    first = next((value for value in there if value.value >= target.value), None)
    if first:
        return "holds", f"{first} is the first to come up to {target}"
    return (
        "holds",
        f"{max(there, key=lambda one: one.value)} is the best and does not come up to {target}" if there else "",
    )


def _below(claim: Claim, values: dict[str, Value], table: Table) -> tuple[Outcome, str]:
    wanted = claim.below
    if wanted is None or wanted.cell not in values:
        return "open", ""
    one = values[wanted.cell]
    words = f"{one}, claimed is under {wanted.limit:g}"
    if not table.comparable:
        return "open", f"{words}, which is judged only {AS_PRINTED}"
    if one.value < wanted.limit - one.noise - TINY:
        return "holds", words
    within = one.value <= wanted.limit + one.noise + TINY and one.noise > 0
    return ("open", f"{words}, within the noise of {number(one.noise, one.places)}") if within else ("fails", words)
