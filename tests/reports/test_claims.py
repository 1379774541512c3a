"""Measured numbers against the paper's: every relation of a claim, and the verdict on a cell."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import scipy.stats

from jigclu.config import ConfigError
from orchestrate.planning import experiments
from orchestrate.planning.claims import RELATIONS, Claim
from orchestrate.planning.experiments import Cell, Experiment
from reports import verdicts
from reports.records import Result, Table

SCALE: dict[str, Any] = {"scale": "paper", "protocol": "official", "variant": ""}
MINI = SCALE | {"scale": "mini"}
OVERRIDDEN = SCALE | {"variant": "pretrain.epochs=50"}


def result(key: str, value: float | None = None, **more: Any) -> Result:
    """A cell's result: `half_width` of one seed, or `std` and `n`; `printed`, `cited`, `unit` of the ledger's cell."""
    ledger = {name: more.pop(name) for name in ("printed", "cited", "unit") if name in more}
    cell = Cell(key=key, row=key, column="", report=None if "cited" in ledger else "linear.top1", **ledger)
    state = more.pop("state", "not run" if value is None else "done")
    return Result(cell=cell, reference=False, state=state, value=value, **{"n": 0 if value is None else 1} | more)


def table(*results: Result, unit: str = "% top-1", **setting: Any) -> Table:
    cells = tuple(result.cell for result in results)
    words: dict[str, Any] = {"name": "figure0", "title": "", "source": "", "topic": "", "unit": unit}
    experiment = Experiment(recipe={"linear": {}}, cells=cells, **words)
    return Table(experiment=experiment, results=results, **SCALE | setting)


def check(relation: dict[str, Any], *results: Result, **setting: Any) -> verdicts.CheckedClaim:
    claim = Claim(text="a claim", source="§0", **relation)
    return verdicts.check_claim(claim, {result.cell.key: result for result in results}, table(*results, **setting))


def outcome(relation: dict[str, Any], *results: Result, **setting: Any) -> str:
    return check(relation, *results, **setting).outcome


def three(a: float | None, b: float | None, c: float | None, half_width: float | None = None) -> list[Result]:
    return [result(key, value, half_width=half_width) for key, value in zip("abc", (a, b, c), strict=True)]


ORDER, BEST = {"order": ["a", "b", "c"]}, {"best": ["a", "b", "c"]}
MORE = {"difference": {"more": "a", "less": "b"}}
BY_SIX = {"difference": {"more": "a", "less": "b", "by": 6.0}}
THIRD = {"ratio": {"of": "a", "to": "b", "at_most": 0.4}}
SMALL = {"below": {"cell": "a", "limit": 10.0}}
REACHES = {"reaches": {"target": "t", "series": ["a", "b", "c"], "at": "c"}}


# -- noise ------------------------------------------------------------------------------------------------------------
def test_noise_is_students_for_several_seeds_and_binomial_for_one() -> None:
    for n in (2, 3, 4, 10):
        wanted = scipy.stats.t.ppf(0.975, n - 1) * 3.0 / math.sqrt(n)
        assert verdicts.noise(result("a", 60.0, std=3.0, n=n, half_width=9.0)) == pytest.approx(wanted, rel=2e-3)
    assert verdicts.noise(result("a", 60.0, half_width=1.5)) == 1.5
    assert verdicts.noise(result("a", 5.5)) == 0.0


def test_a_difference_must_exceed_the_root_of_the_summed_squares() -> None:
    for apart, wanted in ((5.1, "holds"), (4.9, "open"), (-4.9, "open"), (-5.1, "fails")):
        pair = result("a", 50 + apart, half_width=3.0), result("b", 50.0, half_width=4.0)
        assert outcome(MORE, *pair) == wanted
    seeds = result("a", 56.3, std=3.0, n=4), result("b", 50.0, half_width=4.0)  # 3.18 * 3 / sqrt(4) = 4.77
    assert outcome(MORE, *seeds) == "holds"


def test_within_the_noise_is_open_and_says_so() -> None:
    checked = check(MORE, *three(61.0, 60.0, None, 3.0)[:2])
    assert (checked.outcome, checked.reason) == (
        "open",
        "a (61.0) and b (60.0) differ by 1.0, within the noise of 4.2.",
    )


def test_numbers_without_noise_are_compared_directly() -> None:
    assert outcome(MORE, result("a", 5.6), result("b", 5.5)) == "holds"
    assert outcome(MORE, result("a", 5.4), result("b", 5.5)) == "fails"
    assert outcome(MORE, result("a", 5.5), result("b", 5.5)) == "open"


# -- order and best ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", [SCALE, MINI, OVERRIDDEN])
def test_order_and_best_are_checked_at_every_scale(setting: dict[str, Any]) -> None:
    assert outcome(ORDER, *three(80, 70, 60, 2.0), **setting) == "holds"
    assert outcome(BEST, *three(80, 60, 70, 2.0), **setting) == "holds"
    assert outcome(ORDER, *three(80, 60, 70, 2.0), **setting) == "fails"
    assert outcome(BEST, *three(60, 70, 50, 2.0), **setting) == "fails"
    assert (
        outcome(ORDER, *three(80, 79, 60, 2.0), **setting)
        == outcome(BEST, *three(80, 79, 60, 2.0), **setting)
        == "open"
    )


def test_an_order_needs_neighbours_to_be_apart() -> None:
    assert outcome(ORDER, *three(80, 78, 76, 2.0)) == "open"  # a and c are apart, their neighbours are not
    assert outcome(ORDER, *three(76, 78, 80, 2.0)) == "fails"


def test_a_missing_cell_leaves_it_open_and_is_named() -> None:
    checked = check(ORDER, *three(80, 70, None, 2.0))
    assert checked.outcome == "open"
    assert checked.reason == "so far a (80.0) is above b (70.0) by 10.0, noise ±2.8; missing: c (not run)."
    checked = check(BEST, result("a", None, state="failed"), result("b", None), result("c", None))
    assert checked.reason == "missing: a (failed); b, c (not run)."
    assert "c (NaN)" in check(BEST, *three(80, 70, None)[:2], result("c", None, state="done")).reason


def test_measured_cells_that_contradict_the_claim_are_enough() -> None:
    assert outcome(BEST, *three(60, 70, None, 2.0)) == "fails"
    checked = check(ORDER, *three(60, None, 70, 2.0))
    assert (checked.outcome, checked.reason) == ("fails", "a (60.0) is below c (70.0) by 10.0, noise ±2.8.")


# -- difference -------------------------------------------------------------------------------------------------------
def test_an_amount_must_be_reached_up_to_the_noise() -> None:
    for apart, wanted in ((6.5, "holds"), (4.0, "holds"), (3.0, "fails"), (-1.0, "fails")):
        assert outcome(BY_SIX, result("a", 50 + apart, half_width=2.0), result("b", 50.0)) == wanted


def test_an_amount_smaller_than_the_noise_does_not_hold_within_the_noise() -> None:
    small = {"difference": {"more": "a", "less": "b", "by": 0.4}}
    for apart, wanted in ((1.1, "holds"), (0.5, "open"), (-0.5, "open"), (-0.7, "fails")):
        assert outcome(small, result("a", 50 + apart, half_width=1.0), result("b", 50.0)) == wanted


def test_an_amount_holds_at_exactly_its_value() -> None:
    printed = {"difference": {"more": "a", "less": "b", "by": 0.4}}
    assert outcome(printed, result("a", 39.3), result("b", 38.9), unit="AP") == "holds"  # 39.3 - 38.9 is 0.39999...


@pytest.mark.parametrize("setting", [MINI, OVERRIDDEN])
def test_an_amount_is_checked_only_at_the_papers_settings(setting: dict[str, Any]) -> None:
    checked = check(BY_SIX, result("a", 52.5, half_width=2.0), result("b", 50.0), **setting)
    assert checked.outcome == "holds" and "the amount is checked only at scale paper" in checked.reason
    assert outcome(BY_SIX, result("a", 47.5, half_width=2.0), result("b", 50.0), **setting) == "fails"


# -- ratio, reaches, below --------------------------------------------------------------------------------------------
def test_a_ratio_is_checked_at_every_scale() -> None:
    for of, wanted in ((3.9, "holds"), (4.0, "holds"), (4.1, "fails")):
        assert outcome(THIRD, result("a", of, unit="h"), result("b", 10.0, unit="h"), **MINI) == wanted
    checked = check(THIRD, result("a", 4.2, std=0.3, n=4, unit="h"), result("b", 10.0, unit="h"))
    assert checked.outcome == "open" and "0.42 times" in checked.reason and "within the noise" in checked.reason
    assert check(THIRD, result("a", 4.2), result("b")).reason == "missing: b (not run)."


def test_reaching_holds_if_no_earlier_cell_reaches_the_target() -> None:
    target = result("t", 60.0, half_width=1.0)
    checked = check(REACHES, target, *three(50, 55, 61, 1.0), **MINI)
    assert (checked.outcome, checked.reason) == ("holds", "c (61.0) is the first to reach t (60.0).")
    assert outcome(REACHES, target, *three(50, 55, 58, 1.0)) == "holds"  # none does
    assert outcome(REACHES, target, *three(50, 62, 70, 1.0)) == "fails"
    assert outcome(REACHES, target, *three(50, 61, 70, 1.0)) == "open"  # within the noise
    assert outcome(REACHES, result("t", 60.0), *three(50, 60, 70)) == "fails"  # reached, and there is no noise


def test_reaching_with_a_missing_cell() -> None:
    target = result("t", 60.0, half_width=1.0)
    assert outcome(REACHES, target, *three(65, None, None, 1.0)) == "fails"
    checked = check(REACHES, target, *three(50, None, 61, 1.0))
    assert (
        checked.outcome == "open" and checked.reason.startswith("so far c (61.0)") and "b (not run)" in checked.reason
    )
    assert check(REACHES, result("t"), *three(50, 55, 61)).reason == "missing: t (not run)."


def test_an_absolute_limit_is_checked_only_at_the_papers_settings() -> None:
    for value, wanted in ((8.0, "holds"), (9.5, "open"), (10.5, "open"), (12.0, "fails")):
        assert outcome(SMALL, result("a", value, half_width=1.0)) == wanted
    assert outcome(SMALL, result("a", 10.0)) == "fails"
    for setting in (MINI, OVERRIDDEN):
        checked = check(SMALL, result("a", 50.0, half_width=1.0), **setting)
        assert checked.outcome == "open" and "checked only at scale paper" in checked.reason


# -- numbers of other papers ------------------------------------------------------------------------------------------
def test_a_cited_number_counts_only_at_the_papers_settings() -> None:
    cited = result("b", printed=60.0, cited="[1]", state="cited")
    assert outcome(MORE, result("a", 62.0, half_width=1.0), cited) == "holds"
    assert outcome(MORE, result("a", 59.0, half_width=0.5), cited) == "fails"
    for setting in (MINI, OVERRIDDEN):
        checked = check(MORE, result("a", 59.0, half_width=0.5), cited, **setting)
        assert checked.outcome == "open" and "cited from another paper: compared at scale paper only" in checked.reason


def test_measured_cells_can_fail_a_claim_that_names_a_cited_one() -> None:
    cited = result("c", printed=60.0, cited="[1]", state="cited")
    assert outcome(BEST, result("a", 50.0), result("b", 55.0), cited, **MINI) == "fails"
    assert check(BEST, result("a", 55.0), result("b", 50.0), cited, **MINI).reason.startswith(
        "so far a (55.0) is above"
    )


# -- verdicts on cells ------------------------------------------------------------------------------------------------
def verdict(cell: Result, unit: str = "% top-1", **setting: Any) -> str:
    return verdicts.verdict(cell, table(cell, unit=unit, **setting))


def test_a_cell_is_reproduced_within_the_noise_of_both_runs() -> None:
    within = math.sqrt(2) * 0.5  # one measured seed and the paper's single run
    assert verdict(result("a", 66.4 - within + 0.01, half_width=0.5, printed=66.4)) == "reproduced"
    assert verdict(result("a", 66.4 - within - 0.01, half_width=0.5, printed=66.4)) == "off by −0.7"
    seeds = {"std": 1.0, "n": 4, "printed": 66.4}  # 3.18 * sqrt(1/4 + 1) = 3.56
    assert verdict(result("a", 69.9, **seeds)) == "reproduced" and verdict(result("a", 70.0, **seeds)) == "off by +3.6"


def test_without_noise_a_cell_is_reproduced_to_the_printed_digit() -> None:
    assert verdict(result("a", 39.34, printed=39.3), "AP") == "reproduced"
    assert verdict(result("a", 39.37, printed=39.3), "AP") == "off by +0.1"


def test_cells_that_are_not_comparable_have_no_verdict() -> None:
    assert verdict(result("a", 66.4, printed=66.4), scale="mini") == ""
    assert verdict(result("a", 66.4, printed=66.4), variant="pretrain.epochs=50") == ""
    assert verdict(result("a", 66.4)) == verdict(result("a", printed=66.4)) == ""
    assert verdict(result("a", printed=66.4, cited="[1]")) == ""
    assert (
        verdict(result("a", 5.5, printed=5.5, unit="h")) == verdict(result("a", 2700.0, printed=2700, unit="MB")) == ""
    )


# -- the ledger's claims ----------------------------------------------------------------------------------------------
def test_every_claim_of_the_ledger_is_open_before_anything_is_run() -> None:
    for experiment in experiments.load_all().values():
        results = tuple(result(cell.key) for cell in experiment.all_cells)
        empty = Table(experiment=experiment, results=results, **MINI)
        assert {checked.outcome for checked in verdicts.check_claims(empty)} <= {"open"}
        assert verdicts.tally([empty]) == {"holds": 0, "fails": 0, "open": len(experiment.claims)}


def test_every_relation_is_used_by_a_claim_of_the_ledger() -> None:
    used = {type(claim.relation) for experiment in experiments.load_all().values() for claim in experiment.claims}
    assert used == set(RELATIONS.values()) == set(verdicts.EVALUATORS)


def test_a_claim_must_have_exactly_one_relation_and_cells_that_exist() -> None:
    for relations in ({}, {**ORDER, **MORE}):
        with pytest.raises(ValueError, match="exactly one of"):
            Claim(text="x", source="", **relations)
    words: dict[str, Any] = {"name": "figure0", "title": "", "source": "", "topic": "", "unit": "%"}
    cell = result("a").cell
    with pytest.raises((ValueError, ConfigError), match="names the cell 'b'"):
        Experiment(recipe={"linear": {}}, cells=(cell,), claims=(Claim(text="x", source="", **MORE),), **words)


def test_time_is_compared_on_one_device_and_only_if_not_limited_by_the_loader() -> None:
    def timed(key: str, hours: float, device: str = "A100", measured: str = "limited by compute") -> Result:
        return result(key, hours, unit="h", measured=measured, jobs=(SimpleNamespace(device=device),))

    assert outcome(THIRD, timed("a", 3.0), timed("b", 10.0)) == "holds"
    other = check(THIRD, timed("a", 3.0, "T4"), timed("b", 10.0))
    assert other.outcome == "open" and "A100 and T4" in other.reason
    starved = check(THIRD, timed("a", 3.0, measured="limited by the loader"), timed("b", 10.0))
    assert starved.outcome == "open" and "a is limited by the loader" in starved.reason
