"""The relations between cells: (outcome, words) of each by the cells that have a value; no words if nothing can be
compared yet. The rules are in the docstring of the package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise, takewhile
from typing import Any

from orchestrate.planning.claims import Below, Best, Difference, Gap, Order, Ratio, Reaches, Relation, Within
from reports.formatting import PLUS_MINUS, number
from reports.statistics.noise import LEVEL, Estimate, holm
from reports.verdicts.evidence import TINY, Comparison, Evidence, Value, same_jobs
from reports.verdicts.outcomes import FAILS, HOLDS, NOISE, NOT_RUN, UNDECIDABLE, Outcome

AS_PRINTED = "at scale paper without overrides"
Pair = tuple[str, str]
Finding = tuple[Outcome, str]


def _order(relation: Order, evidence: Evidence) -> Finding:
    # Cells that are not neighbours cannot prove an order, but they can disprove it while the cell between is missing.
    return _rank(list(pairwise(relation.cells)), list(combinations(relation.cells, 2)), evidence)


def _best(relation: Best, evidence: Evidence) -> Finding:
    pairs = [(relation.cells[0], key) for key in relation.cells[1:]]
    outcome, words = _rank(pairs, pairs, evidence)
    present = [evidence.values[key] for key in relation.cells if key in evidence.values]
    if len(present) < 2:
        return outcome, words
    return outcome, f"{words}; " * bool(words) + f"the highest is {max(present, key=lambda value: value.value)}"


def _rank(needed: list[Pair], pairs: list[Pair], evidence: Evidence) -> Finding:
    """The first of each pair must exceed the second: all `needed` to hold (no correction: all must); one of `pairs` to fail,
    each at Holm's level, so that the whole claim fails by chance as rarely as a single pair."""
    values = evidence.values
    found = {pair: evidence.compare(*(values[key] for key in pair)) for pair in pairs if set(pair) <= set(values)}
    known = [pair for pair, comparison in found.items() if not comparison.estimate.unknown]
    # A pair without a number yet counts as one that does not contradict.
    chances = [found[pair].estimate.below(-_least(found[pair])) for pair in known]
    wrong = holm(chances + [1.0] * (len(pairs) - len(known)))
    if failing := [pair for pair, so in zip(known, wrong, strict=False) if so]:
        shown = [pair for pair in failing if pair in needed] or failing
        return FAILS, _join(found[pair] for pair in shown)
    undecided = [found[pair] for pair in needed if pair in found and found[pair].outcome == UNDECIDABLE]
    if undecided:
        return UNDECIDABLE, _join(undecided)
    near = [_cautious(found[pair], len(pairs)) for pair in needed if pair in found and found[pair].outcome != HOLDS]
    if near:
        return NOISE, f"{_join(near)}{_power(near[0].estimate, values[needed[0][0]].places)}"
    if not found:
        return NOT_RUN, ""
    closest = min(found.values(), key=lambda comparison: comparison.estimate.value)
    return HOLDS, _join([closest]) if len(found) == 1 else f"the closest pair: {_join([closest])}"


def _cautious(comparison: Comparison, pairs: int) -> Comparison:
    """A pair that would contradict the claim alone, but is not enough among so many."""
    if comparison.outcome != FAILS:
        return comparison
    return comparison._replace(words=f"{comparison.words}, too little for one of {pairs} pairs")


def _least(comparison: Comparison) -> float:
    """How far a value without noise must be below another to count: more than what the digits hide."""
    return TINY if comparison.estimate.width() or comparison.outcome == FAILS else float("inf")


def _join(comparisons: Iterable[Comparison]) -> str:
    found = list(comparisons)
    basis = "; ".join(dict.fromkeys(one.basis for one in found if one.basis))
    return "; ".join(one.words for one in found) + (f" ({basis})" if basis else "")


def _power(found: Estimate, places: int, true: float | None = None) -> str:
    """What such a measurement can show, and how many seeds the measured (or claimed) difference would take."""
    if not found.seeds_se:
        return ""
    wanted = abs(found.value if true is None else true)
    seeds = found.seeds_for(wanted) if wanted > TINY else None
    takes = f"{seeds} seeds" if seeds else "more validation images, not seeds" if found.images_se else "too many seeds"
    which = "a true difference of this size" if true is None else f"the claimed {number(true, places)}"
    shows = f"; a true difference of {number(found.detectable(), places)} would show in 4 of 5 repeats"
    return f"{shows}, {which} takes {takes}" if wanted > TINY else shows


def _difference(relation: Difference, evidence: Evidence) -> Finding:
    values = evidence.values
    if not set(relation.cells) <= set(values):
        return NOT_RUN, ""
    comparison = evidence.compare(values[relation.more], values[relation.less])
    outcome, found, words = comparison.outcome, comparison.estimate, _join([comparison])
    digits = values[relation.more].places
    if relation.by is not None and not evidence.table.comparable:
        words += f"; the amount is checked only {AS_PRINTED}"
    elif relation.by is not None and not found.unknown:
        words += f"; the paper claims {number(relation.by, digits)}"
        if found.below(relation.by - TINY) <= LEVEL and found.value < relation.by - TINY:
            outcome = FAILS
    if outcome == NOISE:
        words += _power(found, digits, relation.by if evidence.table.comparable else None)
    return outcome, words


def _ratio(relation: Ratio, evidence: Evidence) -> Finding:
    values = evidence.values
    if not set(relation.cells) <= set(values):
        return NOT_RUN, ""
    of, to = values[relation.of], values[relation.to]
    found = evidence.sum([(relation.at_most, to), (-1.0, of)])
    share = f"{of.value / to.value:.2f}" if to.value else "no"
    words = f"{of} is {share} times {to}; the paper claims at most {relation.at_most:g}"
    jobs = [job for key in relation.cells for job in evidence.results[key].jobs]
    if len(devices := {job.device for job in jobs}) > 1 and of.sample.nature != "exact":
        return UNDECIDABLE, f"{words}, measured on {' and '.join(sorted(devices))}"
    if waited := [key for key in relation.cells if "loader" in evidence.results[key].measured]:
        return UNDECIDABLE, f"{words}, but {waited[0]} is limited by the loader"
    if found.unknown:
        return UNDECIDABLE, f"{words}, but {found.unknown}"
    if found.value >= found.width() - TINY:
        return HOLDS, words
    return (FAILS, words) if found.value < -found.width() - TINY else (NOISE, f"{words}, within the noise")


def _reaches(relation: Reaches, evidence: Evidence) -> Finding:
    values = evidence.values
    if relation.target not in values:
        return NOT_RUN, ""
    target = values[relation.target]
    earlier = [*takewhile(lambda key: key != relation.at, relation.series)]
    found = {key: evidence.compare(values[key], target) for key in earlier if key in values}
    known = [key for key in found if not found[key].estimate.unknown]
    wrong = holm([found[key].estimate.above(TINY) for key in known] + [1.0] * (len(earlier) - len(known)))
    # Without noise, a number that equals the target has reached it.
    reached = [
        key
        for key, so in zip(known, wrong, strict=False)
        if so or (not found[key].estimate.width() and found[key].estimate.value >= -TINY)
    ]
    if reached:
        return FAILS, f"{_join([found[reached[0]]])}, before {relation.at}"
    if unknown := [found[key] for key in found if found[key].outcome == UNDECIDABLE]:
        return UNDECIDABLE, _join(unknown)
    if near := [found[key] for key in found if found[key].outcome != FAILS]:
        return NOISE, f"{_join(near)}{_power(near[0].estimate, target.places)}"
    present = [values[key] for key in relation.series if key in values]
    first = next((value for value in present if value.value >= target.value), None)
    if first:
        return HOLDS, f"{first} is the first to reach {target}"
    if not present or relation.series[-1] not in values:
        return NOT_RUN, f"{max(present, key=lambda value: value.value)} is the best" if present else ""
    return _arrives(evidence, values[relation.series[-1]], target)


def _arrives(evidence: Evidence, last: Value, target: Value) -> Finding:
    """The outcome if no cell of the series reaches the target: it may have arrived within the noise."""
    comparison = evidence.compare(last, target)
    if comparison.outcome == FAILS:
        return UNDECIDABLE, f"the series does not arrive: {_join([comparison])}"
    return HOLDS, f"only the last reaches it, within the noise: {_join([comparison])}"


def _below(relation: Below, evidence: Evidence) -> Finding:
    if not evidence.table.comparable:
        return UNDECIDABLE, f"an absolute number, which is checked only {AS_PRINTED}"
    if relation.cell not in evidence.values:
        return NOT_RUN, ""
    value = evidence.values[relation.cell]
    found = evidence.sum([(1.0, value)])
    words = f"{value}; the paper claims less than {relation.limit:g}"
    if found.unknown:
        return UNDECIDABLE, f"{words}, but {found.unknown}"
    if value.value < relation.limit - found.width() - TINY:
        return HOLDS, words
    if value.value <= relation.limit + found.width() + TINY and found.width():
        return NOISE, f"{words}, within the noise of {number(found.width(), value.places)}"
    return FAILS, words


def _within(relation: Within, evidence: Evidence) -> Finding:
    values = evidence.values
    if not set(relation.cells) <= set(values):
        return NOT_RUN, ""
    a, b = values[relation.a], values[relation.b]
    comparison = evidence.compare(a, b)
    found, words = comparison.estimate, comparison.words
    margin = f"comparable means a difference of at most {relation.margin:g}"
    if found.unknown:
        return UNDECIDABLE, f"{words}; {margin}"
    room = relation.margin + TINY
    if found.above(-room) <= LEVEL and found.below(room) <= LEVEL:
        return HOLDS, f"{_join([comparison])}; {margin}"
    if found.above(room) <= LEVEL or found.below(-room) <= LEVEL:
        return FAILS, f"{_join([comparison])}; {margin}"
    apart, noise = (number(one, a.places) for one in (found.value, found.width()))
    basis = f" ({comparison.basis})" if comparison.basis else ""
    return NOISE, f"{a} and {b} differ by {apart}, noise {PLUS_MINUS}{noise}{basis}; {margin}"


def _gap(relation: Gap, evidence: Evidence) -> Finding:
    values = evidence.values
    if not set(relation.cells) <= set(values):
        return NOT_RUN, ""
    (a, b), (c, d) = ([values[key] for key in pair] for pair in (relation.larger, relation.smaller))
    digits = max(value.places for value in (a, b, c, d))
    larger, smaller = (number(x.value - y.value, digits, sign=True) for x, y in ((a, b), (c, d)))
    words = f"{a.key} less {b.key} is {larger}, {c.key} less {d.key} is {smaller}"
    if same_jobs(evidence, relation.larger, relation.smaller):
        return UNDECIDABLE, f"{words}: at this scale the same jobs stand for both"
    found = evidence.sum([(1.0, a), (-1.0, b), (-1.0, c), (1.0, d)])
    if found.unknown:
        return UNDECIDABLE, f"{words}, but {found.unknown}"
    noise = number(found.width(), digits)
    basis = f" ({found.basis})" if found.basis else ""
    if abs(found.value) <= found.width() + TINY:
        return NOISE, f"{words}, within the noise of {noise}{basis}{_power(found, digits)}"
    return HOLDS if found.value > 0 else FAILS, f"{words}, noise {PLUS_MINUS}{noise}{basis}"


EVALUATORS: dict[type[Relation], Callable[[Any, Evidence], Finding]] = {
    Order: _order,
    Best: _best,
    Difference: _difference,
    Ratio: _ratio,
    Reaches: _reaches,
    Below: _below,
    Within: _within,
    Gap: _gap,
}


def compared(relation: Relation) -> Sequence[Sequence[str]]:
    """Groups of cells, in each of which one must have learnt something; none for costs and for what should learn nothing."""
    if isinstance(relation, Ratio | Below):
        return ()
    if isinstance(relation, Reaches):
        return (relation.target,), relation.series[-1:]
    return (relation.larger, relation.smaller) if isinstance(relation, Gap) else (relation.cells,)
