"""Measured numbers against the paper's: every relation of a claim, every outcome, and the verdict on a cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.claims import IMAGES, MINI, OVERRIDDEN, SCALE, check, floor, known, result, table

from orchestrate.planning import experiments, scale_notes
from orchestrate.planning.claims import RELATIONS, Claim
from reports import verdicts
from reports.records import Result, Table
from reports.statistics.noise import Pool
from reports.verdicts.relations import EVALUATORS

ORDER, BEST = {"order": ["a", "b", "c"]}, {"best": ["a", "b", "c"]}
MORE = {"difference": {"more": "a", "less": "b"}}
BY_SIX = {"difference": {"more": "a", "less": "b", "by": 6.0}}
THIRD = {"ratio": {"of": "a", "to": "b", "at_most": 0.4}}
SMALL = {"below": {"cell": "a", "limit": 10.0}}
REACHES = {"reaches": {"target": "t", "series": ["a", "b", "c"], "at": "c"}}
NEAR = {"within": {"a": "a", "b": "b", "margin": 3.0}}
GAP = {"gap": {"larger": ["a", "b"], "smaller": ["c", "d"]}}


def outcome(relation: dict[str, Any], *results: Result, **setting: Any) -> str:
    return check(relation, *results, **setting).outcome


def cells(*values: Any, **more: Any) -> list[Result]:
    """Cells a, b, c, ... with these values; the noise of a difference of two is about 2.2 points, by their images."""
    return [result(key, value, **more) for key, value in zip("abcd", values, strict=False)]


# -- the noise of a comparison ----------------------------------------------------------------------------------------
def test_a_difference_must_exceed_the_noise() -> None:
    for apart, wanted in ((2.5, "holds"), (1.9, "within the noise"), (-1.9, "within the noise"), (-2.5, "fails")):
        assert outcome(MORE, *cells(50.0 + apart, 50.0)) == wanted


def test_one_seed_of_a_scale_of_unknown_spread_decides_nothing() -> None:
    checked = check(MORE, *cells(70.0, 50.0), pool=Pool())
    assert (
        checked.outcome == "not decidable here"
        and "one seed, and the spread between seeds is unknown" in checked.reason
    )
    assert outcome(BEST, *cells(50.0, 70.0, 60.0), pool=Pool()) == "not decidable here"


def test_a_percentage_without_its_number_of_images_decides_nothing() -> None:
    assert outcome(MORE, *cells(70.0, 50.0, images=None)) == "not decidable here"


def test_within_the_noise_names_what_would_be_seen_and_the_seeds_it_takes() -> None:
    checked = check(MORE, *cells(51.5, 50.0), pool=known(1.0))
    assert checked.outcome == "within the noise"
    assert "differ by 1.5, within the noise of 3.5" in checked.reason
    assert "a true difference of 4.7 would show in 4 of 5 repeats" in checked.reason
    assert "takes more validation images, not seeds" in checked.reason  # 3,925 images alone hide 1.5
    assert "takes 14 seeds" in check(MORE, *cells(52.7, 50.0, images=50_000), pool=known(2.5)).reason


def test_several_seeds_are_named_with_their_degrees_of_freedom() -> None:
    pair = cells((60.0, 61.0, 62.5), (50.0, 51.5, 52.0))
    pool = verdicts.scale_pool([(one, "% top-1") for one in pair], "mini")
    checked = check(MORE, *pair, pool=pool, **MINI)
    assert checked.outcome == "holds" and "3 seeds, paired; spread between seeds" in checked.reason
    assert "degrees of freedom" in checked.reason


# -- order and best ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", [SCALE, MINI, OVERRIDDEN])
def test_order_and_best_are_checked_at_every_scale(setting: dict[str, Any]) -> None:
    assert outcome(ORDER, *cells(80, 70, 60), **setting) == "holds"
    assert outcome(BEST, *cells(80, 60, 70), **setting) == "holds"
    assert outcome(ORDER, *cells(80, 60, 70), **setting) == "fails"
    assert outcome(BEST, *cells(60, 70, 50), **setting) == "fails"
    assert outcome(ORDER, *cells(80, 79.5, 60), **setting) == outcome(BEST, *cells(80, 79.5, 60), **setting)
    assert outcome(BEST, *cells(80, 79.5, 60), **setting) == "within the noise"


def test_best_names_who_is_best() -> None:
    for values, named in (((80, 60, 70), "a (80.0)"), ((60, 70, 50), "b (70.0)"), ((70, 70.5, 60), "b (70.5)")):
        assert f"the highest is {named}" in check(BEST, *cells(*values)).reason


def test_a_claim_of_many_pairs_fails_at_holms_level() -> None:
    """2.4 points below is beyond the noise of one pair, but not for one of five."""
    others = [result(key, 50.0) for key in "cdef"]
    many = {"best": ["a", "b", "c", "d", "e", "f"]}
    assert outcome(MORE, *cells(50.0, 52.4)) == "fails"
    checked = check(many, *cells(50.0, 52.4), *others)
    assert checked.outcome == "within the noise" and "too little for one of 5 pairs" in checked.reason
    assert outcome(many, *cells(50.0, 53.5), *others) == "fails"


def test_an_order_needs_neighbours_to_be_apart() -> None:
    assert outcome(ORDER, *cells(80, 78.5, 77)) == "within the noise"  # a and c are apart, their neighbours are not
    assert outcome(ORDER, *cells(76, 78, 80)) == "fails"


def test_a_missing_cell_leaves_it_not_run_and_is_named() -> None:
    checked = check(ORDER, *cells(80, 70, None))
    assert checked.outcome == "not run"
    assert checked.reason.startswith("so far a (80.0) is above b (70.0) by 10.0, noise ±1.9")
    assert checked.reason.endswith("; missing: c (not run).")
    checked = check(BEST, result("a", None, state="failed"), result("b", None), result("c", None))
    assert checked.reason == "missing: a (failed); b, c (not run)."


def test_measured_cells_that_contradict_the_claim_are_enough() -> None:
    assert outcome(BEST, *cells(60, 70, None)) == "fails"
    checked = check(ORDER, *cells(60, None, 70))
    assert checked.outcome == "fails" and "a (60.0) is below c (70.0) by 10.0, noise ±2.1" in checked.reason


# -- difference -------------------------------------------------------------------------------------------------------
def test_an_amount_must_be_reached_up_to_the_noise() -> None:
    for apart, wanted in ((6.5, "holds"), (4.5, "holds"), (3.0, "fails"), (-1.0, "fails")):
        assert outcome(BY_SIX, *cells(50 + apart, 50.0)) == wanted


def test_an_amount_smaller_than_the_noise_does_not_hold_within_the_noise() -> None:
    small = {"difference": {"more": "a", "less": "b", "by": 0.4}}
    for apart, wanted in ((2.5, "holds"), (0.5, "within the noise"), (-0.5, "within the noise"), (-2.5, "fails")):
        assert outcome(small, *cells(50 + apart, 50.0)) == wanted


@pytest.mark.parametrize("setting", [MINI, OVERRIDDEN])
def test_an_amount_is_checked_only_at_the_papers_settings(setting: dict[str, Any]) -> None:
    checked = check(BY_SIX, *cells(53.0, 50.0), **setting)
    assert checked.outcome == "holds" and "the amount is checked only at scale paper" in checked.reason
    assert outcome(BY_SIX, *cells(47.0, 50.0), **setting) == "fails"


# -- within and gap ---------------------------------------------------------------------------------------------------
def test_comparable_means_inside_the_margin_by_the_noise() -> None:
    for apart, wanted in (
        (0.5, "holds"),
        (-0.5, "holds"),
        (2.0, "within the noise"),
        (4.0, "within the noise"),
        (6.0, "fails"),
    ):
        assert outcome(NEAR, *cells(50 + apart, 50.0)) == wanted


def test_a_gap_compares_two_differences() -> None:
    for larger, wanted in ((10.0, "holds"), (5.0, "within the noise"), (0.0, "fails")):
        checked = check(GAP, *cells(50 + larger, 50.0, 55.0, 50.0), **MINI)
        assert checked.outcome == wanted and f"a less b is +{larger:.1f}, c less d is +5.0" in checked.reason
    assert outcome(GAP, *cells(50.0, 50.0, 55.0, None)) == "not run"


def test_a_gap_of_the_same_jobs_is_not_decidable() -> None:
    """At mini, Imagenette stands for ImageNet-1k as well as for ImageNet-100."""
    a, b, *_ = cells(60.0, 50.0)
    twins = [
        Result(**{**vars(one), "cell": one.cell.model_copy(update={"key": key, "row": key})})
        for one, key in ((a, "c"), (b, "d"))
    ]
    checked = check(GAP, a, b, *twins)
    assert checked.outcome == "not decidable here" and "the same jobs stand for both" in checked.reason


def test_cells_of_other_tables_are_found_by_their_name() -> None:
    a, b, c, d = cells(60.0, 50.0, 52.0, 50.0)
    claim = Claim(text="", source="", gap={"larger": ["a", "b"], "smaller": ["table1/c", "table1/d"]})
    shown = Table(**{**vars(table(a, b)), "elsewhere": {"table1/c": c, "table1/d": d}})
    checked = verdicts.check_claim(claim, {"a": a, "b": b}, shown)
    assert checked.outcome == "holds" and "table1/c less table1/d is +2.0" in checked.reason


# -- ratio, reaches, below --------------------------------------------------------------------------------------------
def test_a_ratio_is_checked_at_every_scale() -> None:
    for of, wanted in ((3.9, "holds"), (4.0, "holds"), (4.1, "fails")):
        assert outcome(THIRD, *cells(of, 10.0, unit="h"), **MINI) == wanted
    checked = check(THIRD, result("a", (4.5, 3.9, 4.3), unit="h"), result("b", (10.0, 10.1, 9.9), unit="h"))
    assert checked.outcome == "within the noise" and "0.42 times" in checked.reason
    assert check(THIRD, result("a", 4.2, unit="h"), result("b", unit="h")).reason == "missing: b (not run)."


def test_counted_costs_have_no_noise_and_no_device() -> None:
    half = {"ratio": {"of": "a", "to": "b", "at_most": 0.5}}
    for to, wanted in ((6.0, "holds"), (4.0, "fails")):
        counted = result("a", 3.0, unit="passes"), result("b", to, unit="passes", job={"device": "another"})
        assert outcome(half, *counted) == wanted


def test_time_is_compared_on_one_device_and_only_if_not_limited_by_the_loader() -> None:
    def timed(key: str, hours: float, device: str = "A100", measured: str = "limited by compute") -> Result:
        return result(key, hours, unit="h", measured=measured, job={"device": device})

    assert outcome(THIRD, timed("a", 3.0), timed("b", 10.0)) == "holds"
    other = check(THIRD, timed("a", 3.0, "T4"), timed("b", 10.0))
    assert other.outcome == "not decidable here" and "A100 and T4" in other.reason
    starved = check(THIRD, timed("a", 3.0, measured="limited by the loader"), timed("b", 10.0))
    assert starved.outcome == "not decidable here" and "a is limited by the loader" in starved.reason


def test_reaching_holds_if_no_earlier_cell_reaches_the_target_and_a_later_one_does() -> None:
    target = result("t", 60.0)
    checked = check(REACHES, target, *cells(50, 55, 61), **MINI)
    assert (checked.outcome, checked.reason) == ("holds", "c (61.0) is the first to reach t (60.0).")
    assert outcome(REACHES, target, *cells(50, 63, 70)) == "fails"
    assert outcome(REACHES, target, *cells(50, 61, 70)) == "within the noise"


def test_a_series_that_does_not_arrive_proves_nothing() -> None:
    target = result("t", 60.0)
    checked = check(REACHES, target, *cells(50, 52, 55))
    assert checked.outcome == "not decidable here" and "the series does not arrive" in checked.reason
    assert outcome(REACHES, target, *cells(40, 45, 59.5)) == "holds"  # the last arrives within the noise
    assert outcome(REACHES, target, *cells(25, 26, 31), floor(30.0)) == "nothing learnt"
    assert outcome(REACHES, result("t", 30.5), *cells(25, 26, 31), floor(30.0)) == "nothing learnt"


def test_reaching_with_a_missing_cell() -> None:
    target = result("t", 60.0)
    assert outcome(REACHES, target, *cells(65, None, None)) == "fails"
    assert outcome(REACHES, target, *cells(50, None, 61)) == "not run"
    assert check(REACHES, result("t"), *cells(50, 55, 61)).reason == "missing: t (not run)."


def test_an_absolute_limit_is_checked_only_at_the_papers_settings() -> None:
    for value, wanted in ((8.0, "holds"), (9.5, "within the noise"), (10.5, "within the noise"), (12.0, "fails")):
        assert outcome(SMALL, result("a", value)) == wanted
    for setting in (MINI, OVERRIDDEN):
        checked = check(SMALL, result("a", 50.0), **setting)
        assert checked.outcome == "not decidable here" and "checked only at scale paper" in checked.reason


# -- what a scale cannot decide ---------------------------------------------------------------------------------------
def test_a_cell_with_more_patches_than_map_cells_decides_nothing() -> None:
    encoder = {"method.name": "jigclu", "method.m": "3", "image_size": "64", "method.input": "montage"}
    checked = check(MORE, result("a", 60.0), result("b", 40.0, encoder=encoder), **MINI)
    assert checked.outcome == "not decidable here"
    assert "the 2 x 2 feature map of 64-pixel images has fewer cells than the 3 x 3 patches of b" in checked.reason
    for enough in ({"image_size": "65"}, {"method.m": "2"}, {"method.input": "small"}, {"method.name": "simclr"}):
        assert outcome(MORE, result("a", 60.0), result("b", 40.0, encoder=encoder | enough), **MINI) == "holds"


def test_a_scale_names_comparisons_that_it_cannot_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = scale_notes.ScaleNotes.model_validate(
        {"undecidable": {"figure0": [{"cells": ["a", "b"], "why": "too near"}]}}
    )
    monkeypatch.setattr("reports.verdicts.evidence.scale_notes", lambda scale: notes)
    checked = check(BEST, *cells(70, 50, 40), **MINI)
    assert checked.outcome == "not decidable here" and "too near" in checked.reason
    assert outcome(BEST, *cells(50, 40, 70), **MINI) == "fails"  # by a pair that can be decided
    assert outcome({"difference": {"more": "a", "less": "c"}}, *cells(70, 50, 40), **MINI) == "holds"
    assert outcome(BEST, *cells(70, 50, 40)) == "holds"  # the scale's words say nothing about scale paper's


def test_every_comparison_that_a_scale_names_exists() -> None:
    ledger = experiments.load_all()
    for scale in experiments.overlays("scales"):
        for name, barred in scale_notes.scale_notes(scale).undecidable.items():
            keys = {cell.key for cell in ledger[name].all_cells}
            assert all(set(one.cells) <= keys for one in barred), (scale, name)


# -- AP ---------------------------------------------------------------------------------------------------------------
def test_ap_is_compared_by_its_bootstrap_and_not_without() -> None:
    def ap(key: str, value: float, width: float | None) -> Result:
        metrics = {} if width is None else {"result.half_width.ap": width}
        return result(key, value, report="detect.ap", metrics=metrics, images=206)

    pool = known(0.1, "detect.ap")
    assert outcome(MORE, ap("a", 39.3, 0.2), ap("b", 38.2, 0.2), unit="AP", pool=pool) == "holds"
    assert outcome(MORE, ap("a", 39.3, 0.2), ap("b", 39.2, 0.2), unit="AP", pool=pool) == "within the noise"
    assert outcome(MORE, ap("a", 39.3, None), ap("b", 38.2, 0.2), unit="AP", pool=pool) == "not decidable here"
    assert outcome(MORE, ap("a", 39.3, 0.2), ap("b", 38.2, 0.2), unit="AP", pool=Pool()) == "not decidable here"


# -- checkpoints ------------------------------------------------------------------------------------------------------
def test_two_checkpoints_are_compared_image_by_image_and_labelled_so() -> None:
    def bits(right: int) -> dict[str, Any]:
        return {"correct": np.packbits([1] * right + [0] * (IMAGES - right)).tobytes(), "fingerprint": "f"}

    checked = check(MORE, result("a", 60.0, job=bits(2400)), result("b", 50.0, job=bits(2000)))
    assert "these two checkpoints (seed 0) only: 400 images are right in a alone, 0 in b alone" in checked.reason
    other = bits(2000) | {"fingerprint": "another"}
    assert "checkpoints" not in check(MORE, result("a", 60.0, job=bits(2400)), result("b", 50.0, job=other)).reason


# -- numbers of other papers ------------------------------------------------------------------------------------------
def test_a_cited_number_counts_only_at_the_papers_settings() -> None:
    cited = result("b", printed=60.0, cited="[1]", state="cited")
    assert outcome(MORE, result("a", 62.0), cited) == "holds"
    assert outcome(MORE, result("a", 58.0), cited) == "fails"
    for setting in (MINI, OVERRIDDEN):
        checked = check(MORE, result("a", 59.0), cited, **setting)
        assert checked.outcome == "not decidable here"
        assert "cited from another paper: compared at scale paper only" in checked.reason


def test_measured_cells_can_fail_a_claim_that_names_a_cited_one() -> None:
    cited = result("c", printed=60.0, cited="[1]", state="cited")
    assert outcome(BEST, *cells(50.0, 55.0), cited, **MINI) == "fails"


# -- verdicts on cells ------------------------------------------------------------------------------------------------
def verdict(cell: Result, unit: str = "% top-1", **setting: Any) -> str:
    return verdicts.verdict(cell, table(cell, unit=unit, **setting))


def test_a_cell_is_reproduced_within_a_margin_that_noise_does_not_widen() -> None:
    assert verdict(result("a", 65.4, printed=66.4)) == "reproduced"
    for sd, wanted in ((0.01, "off by −1.1"), (5.0, "off by −1.1, within the noise")):
        assert verdict(result("a", 65.3, printed=66.4, images=50_000), pool=known(sd)) == wanted
    assert verdict(result("a", 65.3, printed=66.4), pool=Pool()) == "off by −1.1"
    assert verdict(result("a", 39.8, printed=39.3), "AP") == "reproduced"
    assert verdict(result("a", 39.9, printed=39.3), "AP") == "off by +0.6"


def test_the_margin_is_stated_beside_the_noise() -> None:
    cell = result("a", 65.4, printed=66.4)
    shown = table(verdicts.with_noise(cell, table(cell)))
    assert shown.results[0].noise == pytest.approx(1.49, abs=0.02)
    assert "within ±1 % top-1 of the printed value" in verdicts.legend(shown)


def test_cells_that_are_not_comparable_have_no_verdict() -> None:
    assert verdict(result("a", 66.4, printed=66.4), scale="mini") == ""
    assert verdict(result("a", 66.4, printed=66.4), variant="pretrain.epochs=50") == ""
    assert verdict(result("a", 66.4)) == verdict(result("a", printed=66.4)) == ""
    assert verdict(result("a", 5.5, printed=5.5, unit="h")) == verdict(result("a", 27.0, printed=27, unit="MB")) == ""


# -- the ledger's claims ----------------------------------------------------------------------------------------------
def test_no_claim_of_the_ledger_is_decided_before_anything_is_run() -> None:
    for experiment in experiments.load_all().values():
        results = tuple(Result(cell=cell, reference=False, state=cell.resting_state) for cell in experiment.all_cells)
        empty = Table(experiment=experiment, results=results, **MINI)
        assert {checked.outcome for checked in verdicts.check_claims(empty)} <= {"not run", "not decidable here"}
        assert sum(verdicts.tally([empty]).values()) == len(experiment.claims)


def test_the_papers_own_numbers_agree_with_its_claims_except_where_it_is_noted() -> None:
    """Every printed (or read) number as if it were measured on a million images, with hardly any spread."""
    contradicted = []
    for experiment in experiments.load_all().values():
        pool = Pool(recorded=known(1e-9, "").recorded)
        found = []
        for cell in experiment.all_cells:
            value = cell.printed if cell.printed is not None else cell.read
            made = result(
                cell.key, None if cell.cited else value, images=1e8, metrics={f"result.half_width.{cell.key}": 0.0}
            )
            found.append(
                Result(**{**vars(made), "cell": cell, "state": cell.resting_state if value is None else made.state})
            )
        shown = Table(experiment=experiment, results=tuple(found), pool=pool, **SCALE)
        contradicted += [one.claim for one in verdicts.check_claims(shown) if one.outcome == "fails"]
    assert {claim.text for claim in contradicted} == {
        "1 % of the labels: UDA is higher, being made for semi-supervised learning"
    }
    assert all(claim.note for claim in contradicted)


def test_every_relation_is_used_by_a_claim_of_the_ledger() -> None:
    used = {type(claim.relation) for experiment in experiments.load_all().values() for claim in experiment.claims}
    assert used == set(RELATIONS.values()) == set(EVALUATORS)
