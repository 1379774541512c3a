"""Cells against the table's random weights: nothing learnt, within the noise of other seeds, or learnt."""

from __future__ import annotations

from typing import Any

from helpers.claims import MINI, check, floor, result

from reports import verdicts
from reports.records import Result

MORE = {"difference": {"more": "a", "less": "b"}}


def outcome(relation: dict[str, Any], *results: Result, **setting: Any) -> str:
    return check(relation, *results, **setting).outcome


def cells(*values: Any, **more: Any) -> list[Result]:
    return [result(key, value, **more) for key, value in zip("ab", values, strict=True)]


def test_cells_that_do_not_beat_random_weights_have_learnt_nothing() -> None:
    """Mini's tenth: JigClu 27.2 and MoCo v2 23.9 under random weights at 30.0."""
    checked = check(MORE, *cells(27.2, 23.9), floor(30.0), **MINI)
    assert (
        checked.outcome == "nothing learnt" and "a (27.2) is not above random weights, random (30.0)" in checked.reason
    )
    assert outcome(MORE, *cells(27.2, 23.9), floor(20.0), **MINI) == "holds"
    assert outcome(MORE, *cells(27.2, 23.9), floor(26.5), **MINI) == "nothing learnt"  # above it, within the noise
    assert (
        outcome(MORE, *cells(27.2, 23.9), floor(20.0), floor(28.0, "random, BN calibrated"), **MINI) == "nothing learnt"
    )


def test_a_large_gain_of_few_seeds_is_within_the_noise_and_not_nothing_learnt() -> None:
    """Three seeds of which one is 20 points above the others, all far above random weights."""
    few = floor((30.9, 31.7, 33.3))
    pair = [result("a", (82.5, 50.0, 49.0)), result("b", (30.5, 49.0, 80.5))]
    spread = verdicts.scale_pool([(one, "%") for one in pair], "mini")
    checked = check(MORE, *pair, few, pool=spread, **MINI)
    assert checked.outcome == "within the noise"
    assert "a (60.5) is above random weights, random (32.0), by 28.5, within the noise of" in checked.reason
    assert outcome(MORE, *cells((32.5, 31.0, 33.0), (31.0, 32.0, 31.5)), few, pool=spread, **MINI) == "nothing learnt"


def test_one_cell_that_has_learnt_is_enough() -> None:
    assert outcome(MORE, *cells(27.2, 45.0), floor(30.0), **MINI) == "fails"


def test_the_floor_is_that_of_the_cells_own_column() -> None:
    pair = cells(27.2, 23.9, column="10 %")
    other = result("random 100 %", 40.0, method=None, reference=True, column="100 %")
    own = result("random 10 %", 15.0, method=None, reference=True, column="10 %")
    assert outcome(MORE, *pair, other, own, **MINI) == "holds"
