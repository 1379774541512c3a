"""Measured numbers against the paper's: a verdict on a cell, and whether a claim holds.

Noise is a 95 % half-width. For a cell with n seeds it is Student's t times std / sqrt(n); for a percentage from one seed it
is the binomial one on the validation images. Time, memory, other values without a known noise, and numbers that the paper
cites have none and are compared as they are. The noise of a difference is the root of the summed squares.

A cell gets a verdict if it was run at the paper's settings (scale `paper`, no override): `reproduced` if it is within the
noise of the printed value, which is itself one run and so adds the noise of a single seed; else `off by` the difference.
Hours and megabytes depend on the machine and never get one.

A claim `holds` or `fails` if the numbers show it beyond the noise; otherwise it is `open`:

- order, best, difference: one cell must exceed the other by more than the noise. Measured cells that contradict the claim
  make it fail even if others are missing; if they agree, it stays open until none is missing.
- difference with `by`: at the paper's settings the difference must also reach `by` minus the noise. Elsewhere only its sign
  counts.
- ratio: checked at every scale; of time and memory only if both were measured on one kind of device and without waiting
  for data.
- reaches: fails if a cell before `at` reaches the target by more than the noise; open if one does so within the noise.
- below: an absolute number, so it is checked only at the paper's settings.
- A number that the paper cites counts only if the others were run at the paper's settings; elsewhere it is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise, takewhile
from typing import Any, Literal, NamedTuple

from orchestrate.planning.claims import Below, Best, Claim, Difference, Order, Ratio, Reaches, Relation
from reports.formatting import HARDWARE, PLUS_MINUS, number, places, printed_places
from reports.records import Result, Table

Outcome = Literal["holds", "fails", "open"]
OUTCOMES: tuple[Outcome, ...] = ("holds", "fails", "open")
TINY = 1e-9  # rounding of decimal numbers in binary: 66.4 - 63.8 is not exactly 2.6
# 97.5 % quantiles for 2, 3, ..., 10 seeds; the last is used for more, where it is conservative.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
CITED = "cited from another paper: compared at scale paper only"
AS_PRINTED = "at scale paper without overrides"
Pair = tuple[str, str]


@dataclass(frozen=True)
class CheckedClaim:
    """A claim and its outcome. `reason`: one sentence with the measured numbers."""

    claim: Claim
    outcome: Outcome
    reason: str


class Value(NamedTuple):
    """A cell's number in a claim. `noise`: 95 % half-width, zero if unknown; `places`: decimals to show."""

    key: str
    value: float
    noise: float
    places: int

    def __str__(self) -> str:
        return f"{self.key} ({number(self.value, self.places)})"


class Evidence(NamedTuple):
    """`values`: of the claim's cells that have one; `results`: of every cell of `table`."""

    values: dict[str, Value]
    results: Mapping[str, Result]
    table: Table


class Comparison(NamedTuple):
    """`difference`: first less second; `noise`: of the difference; `words`: the numbers in words."""

    outcome: Outcome
    difference: float
    noise: float
    words: str


def noise(result: Result) -> float:
    """95 % half-width of the cell's value, in its unit; zero if unknown."""
    if result.n > 1 and result.std is not None:
        return STUDENT[min(result.n, len(STUDENT) + 1) - 2] * result.std / math.sqrt(result.n)
    return result.half_width or 0.0


def verdict(result: Result, table: Table) -> str:
    """`reproduced`, `off by -x.x`, or "" if the cell gets no verdict."""
    unit, difference = table.unit(result.cell), result.difference
    if difference is None or not table.comparable or unit in HARDWARE:
        return ""
    digits = printed_places(table, unit)
    both = noise(result) * math.sqrt(1 + max(1, result.n))  # of the mean, and of the paper's single run
    rounding = 0.5 * 10**-digits
    near = abs(difference) <= max(both, rounding) + TINY
    return "reproduced" if near else f"off by {number(difference, digits, sign=True)}"


def check_claims(table: Table) -> tuple[CheckedClaim, ...]:
    """Every claim of the table's experiment, in the ledger's order."""
    results = {result.cell.key: result for result in table.results}
    return tuple(check_claim(claim, results, table) for claim in table.experiment.claims)


def tally(tables: Iterable[Table]) -> dict[Outcome, int]:
    """How many of the tables' claims hold, fail and are open."""
    found = Counter(claim.outcome for table in tables for claim in check_claims(table))
    return {outcome: found[outcome] for outcome in OUTCOMES}


def check_claim(claim: Claim, results: Mapping[str, Result], table: Table) -> CheckedClaim:
    """Check the claim against `results`, cell key -> result, all of `table`, as the module's docstring defines it."""
    values, missing = _values(claim, results, table)
    outcome, reason = EVALUATORS[type(claim.relation)](claim.relation, Evidence(values, results, table))
    if missing and outcome != "fails":
        reasons = dict.fromkeys(missing.values())
        keys = {why: ", ".join(key for key in missing if missing[key] == why) for why in reasons}
        named = "missing: " + "; ".join(f"{keys[why]} ({why})" for why in reasons)
        outcome, reason = "open", f"so far {reason}; {named}" if reason else named
    return CheckedClaim(claim, outcome, f"{reason}.")


# -- the cells' values ------------------------------------------------------------------------------------------------
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


def _compare(more: Value, less: Value) -> Comparison:
    """Whether `more` exceeds `less`."""
    difference, both = more.value - less.value, math.hypot(more.noise, less.noise)
    digits = max(more.places, less.places)
    apart = number(abs(difference), digits)
    around = f", noise {PLUS_MINUS}{number(both, digits)}" if both else ""
    if abs(difference) <= both + TINY:
        words = f"{more} and {less} differ by {apart}, within the noise of {number(both, digits)}"
        return Comparison("open", difference, both, words if both else f"{more} equals {less}")
    if not both and abs(difference) < 0.5 * 10**-digits:  # one seed each, without a known noise
        return Comparison("open", difference, both, f"{more} and {less} are equal in the digits shown")
    above = difference > 0
    words = f"{more} is {'above' if above else 'below'} {less} by {apart}{around}"
    return Comparison("holds" if above else "fails", difference, both, words)


# -- the relations: (outcome, words) by the cells that have a value; no words if nothing can be compared yet ----------
def _evaluate_order(relation: Order, evidence: Evidence) -> tuple[Outcome, str]:
    # Cells that are not neighbours cannot prove an order, but they can disprove it while the cell between is missing.
    return _rank(list(pairwise(relation.cells)), list(combinations(relation.cells, 2)), evidence.values)


def _evaluate_best(relation: Best, evidence: Evidence) -> tuple[Outcome, str]:
    pairs = [(relation.cells[0], key) for key in relation.cells[1:]]
    return _rank(pairs, pairs, evidence.values)


def _rank(needed: list[Pair], pairs: list[Pair], values: dict[str, Value]) -> tuple[Outcome, str]:
    """The first of each pair must exceed the second: `needed` to hold, any of `pairs` suffices to fail."""
    found = {pair: _compare(values[pair[0]], values[pair[1]]) for pair in pairs if all(key in values for key in pair)}
    failing = [pair for pair, comparison in found.items() if comparison.outcome == "fails"]
    if failing:
        shown = [pair for pair in failing if pair in needed] or failing
        return "fails", "; ".join(found[pair].words for pair in shown)
    near = [found[pair].words for pair in needed if pair in found and found[pair].outcome == "open"]
    if near:
        return "open", "; ".join(near)
    if not found:
        return "open", ""
    closest = min(found.values(), key=lambda comparison: comparison.difference).words
    return "holds", closest if len(found) == 1 else f"the closest pair: {closest}"


def _evaluate_difference(relation: Difference, evidence: Evidence) -> tuple[Outcome, str]:
    values = evidence.values
    if not set(relation.cells) <= set(values):
        return "open", ""
    outcome, difference, both, words = _compare(values[relation.more], values[relation.less])
    if relation.by is None:
        return outcome, words
    if not evidence.table.comparable:
        return outcome, f"{words}; the amount is checked only {AS_PRINTED}"
    words += f"; the paper claims {number(relation.by, values[relation.more].places)}"
    return ("fails" if difference < relation.by - both - TINY else outcome), words


def _evaluate_ratio(relation: Ratio, evidence: Evidence) -> tuple[Outcome, str]:
    values = evidence.values
    if not set(relation.cells) <= set(values):
        return "open", ""
    of, to = values[relation.of], values[relation.to]
    room, both = relation.at_most * to.value - of.value, math.hypot(of.noise, relation.at_most * to.noise)
    share = f"{of.value / to.value:.2f}" if to.value else "no"
    words = f"{of} is {share} times {to}; the paper claims at most {relation.at_most:g}"
    jobs = [job for key in relation.cells for job in evidence.results[key].jobs]
    if len(devices := {job.device for job in jobs}) > 1:
        return "open", f"{words}, measured on {' and '.join(sorted(devices))}"
    if waited := [key for key in relation.cells if "loader" in evidence.results[key].measured]:
        return "open", f"{words}, but {waited[0]} is limited by the loader"
    if room >= both - TINY:
        return "holds", words
    return ("fails", words) if room < -both - TINY else ("open", f"{words}, within the noise")


def _evaluate_reaches(relation: Reaches, evidence: Evidence) -> tuple[Outcome, str]:
    values = evidence.values
    if relation.target not in values:
        return "open", ""
    target = values[relation.target]
    near = []
    for key in takewhile(lambda key: key != relation.at, relation.series):
        if key not in values:
            continue
        outcome, difference, both, words = _compare(values[key], target)
        if outcome == "holds" or (not both and difference >= -TINY):
            return "fails", f"{words}, before {relation.at}"
        near += [words] if outcome == "open" else []
    if near:
        return "open", "; ".join(near)
    present = [values[key] for key in relation.series if key in values]
    first = next((value for value in present if value.value >= target.value), None)
    if first:
        return "holds", f"{first} is the first to reach {target}"
    best = max(present, key=lambda value: value.value, default=None)
    return "holds", f"{best} is the best and does not reach {target}" if best else ""


def _evaluate_below(relation: Below, evidence: Evidence) -> tuple[Outcome, str]:
    if relation.cell not in evidence.values:
        return "open", ""
    value = evidence.values[relation.cell]
    words = f"{value}; the paper claims less than {relation.limit:g}"
    if not evidence.table.comparable:
        return "open", f"{words}, which is checked only {AS_PRINTED}"
    if value.value < relation.limit - value.noise - TINY:
        return "holds", words
    within = value.value <= relation.limit + value.noise + TINY and value.noise > 0
    return ("open", f"{words}, within the noise of {number(value.noise, value.places)}") if within else ("fails", words)


EVALUATORS: dict[type[Relation], Callable[[Any, Evidence], tuple[Outcome, str]]] = {
    Order: _evaluate_order,
    Best: _evaluate_best,
    Difference: _evaluate_difference,
    Ratio: _evaluate_ratio,
    Reaches: _evaluate_reaches,
    Below: _evaluate_below,
}
