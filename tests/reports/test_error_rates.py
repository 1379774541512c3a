"""Simulated tables: how often equal methods are found to differ by chance, and how often true differences are found.

A cell's number is its true accuracy, what the seed adds to every method, what the seed adds to this one, and how the
validation images happen to suit the method. Seeds and images are shared, as in the suite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers import claims as made
from helpers.claims import IMAGES, MINI, filled, known, result

from orchestrate.planning.claims import Claim
from reports.records import Result, Table
from reports.statistics.noise import Estimate, estimate
from reports.verdicts import check_claim
from reports.verdicts.samples import sample, scale_pool

MEAN, SD, SHARED_SD, SUITS_SD = 46.0, 1.64, 0.6, 0.3  # SD: between seeds, in total
DRAWS = 250
KEYS = "abcdef"
DECIDED = ("holds", "fails")
RELATIONS: dict[str, dict[str, Any]] = {
    "difference": {"difference": {"more": "a", "less": "b"}},
    "order": {"order": ["a", "b", "c", "d"]},
    **{f"best of {n + 1}": {"best": list(KEYS[: n + 1])} for n in (2, 3, 5)},
    "reaches": {"reaches": {"target": "f", "series": ["a", "b", "c", "d"], "at": "d"}},
    "gap": {"gap": {"larger": ["a", "b"], "smaller": ["c", "d"]}},
}
WITHIN = {"within": {"a": "a", "b": "b", "margin": 3.0}}


def draw(rng: np.random.Generator, n: int, apart: Sequence[float] = (0.0,) * 6) -> np.ndarray:
    """Accuracies (6, n) of cells that differ by `apart` in truth."""
    own = np.sqrt(SD**2 - SHARED_SD**2)
    seeds = SHARED_SD * rng.standard_normal((1, n)) + own * rng.standard_normal((6, n))
    images = rng.standard_normal() + SUITS_SD * rng.standard_normal((6, 1))
    return np.asarray(MEAN + np.array(apart)[:, None] + images + seeds)


BLANK: list[Result] = [result(key, MEAN) for key in KEYS]


def tables(n: int, draws: int, apart: Sequence[float] = (0.0,) * 6, seed: int = 0) -> list[Table]:
    """Tables at scale mini. With one seed the scale's spread is recorded; with more it is pooled over the six cells."""
    rng = np.random.default_rng([seed, n])
    found, bare = [], made.table(*BLANK, **MINI)
    for _ in range(draws):
        results = tuple(filled(one, values) for one, values in zip(BLANK, draw(rng, n, apart).tolist(), strict=True))
        results = tuple(_with_jobs(one, n) for one in results)
        pool = known(SD) if n == 1 else scale_pool([(one, "% top-1") for one in results], "mini")
        found.append(Table(experiment=bare.experiment, results=results, pool=pool, **MINI))
    return found


def _with_jobs(one: Result, n: int) -> Result:
    return Result(**{**vars(one), "jobs": one.jobs * n})


def shares(relation: dict[str, Any], shown: list[Table]) -> dict[str, float]:
    claim = Claim(text="", source="", **relation)
    found = Counter(check_claim(claim, {one.cell.key: one for one in table.results}, table).outcome for table in shown)
    return {outcome: count / len(shown) for outcome, count in found.items()}


def decided(relation: dict[str, Any], shown: list[Table]) -> float:
    found = shares(relation, shown)
    return sum(found.get(outcome, 0.0) for outcome in DECIDED)


def chance(share: float, draws: int) -> float:
    """Three standard errors of a simulated share."""
    return 3 * float(np.sqrt(share * (1 - share) / draws))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_equal_methods_are_decided_in_at_most_5_percent_at_every_relation(n: int) -> None:
    shown = tables(n, DRAWS)
    rates = {name: decided(relation, shown) for name, relation in RELATIONS.items()}
    assert {name: rate for name, rate in rates.items() if rate > 0.05 + chance(0.05, DRAWS)} == {}
    # At the edge of the margin `comparable` is neither true nor false.
    edge = decided(WITHIN, tables(n, DRAWS, (3.0, 0, 0, 0, 0, 0)))
    assert edge <= 0.05 + chance(0.05, DRAWS)
    # Many relations together know the rate better than each alone.
    assert np.mean([*rates.values(), edge]) <= 0.05


def test_the_simulation_finds_a_rule_that_knows_no_seeds() -> None:
    """Binomial noise alone, as of one seed's validation images, decides 37 % of comparisons of equals."""
    rng = np.random.default_rng(0)
    values = np.array([draw(rng, 1)[:2, 0] for _ in range(4000)]) / 100
    width = 1.96 * np.sqrt((values * (1 - values) / IMAGES).sum(1))
    assert 0.30 < np.mean(np.abs(values[:, 0] - values[:, 1]) > width) < 0.42
    # The same through the verdicts: a scale that claims to have no spread.
    shown = [Table(**{**vars(table), "pool": known(1e-6)}) for table in tables(1, DRAWS)]
    assert decided(RELATIONS["difference"], shown) > 0.3


GAPS = {"Table 2": 6.2, "Table 8": 4.6, "Table 9": 1.3, "before and after": 2.8}


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
def test_the_stated_power_comes_out(n: int, gap: float) -> None:
    draws = 300
    shown = tables(n, draws, (gap, 0, 0, 0, 0, 0), seed=1)
    stated = float(np.mean([_difference(table).power(gap) for table in shown]))
    assert shares(RELATIONS["difference"], shown).get("holds", 0.0) == pytest.approx(
        stated, abs=0.03 + chance(0.5, draws) / 2
    )


def test_the_seeds_that_are_named_suffice() -> None:
    """The advice beside `within the noise`: with that many seeds four of five repeats show the difference."""
    known_spread = Estimate(2.7, SD * np.sqrt(2), 1.1, 1e9, 1)
    n = known_spread.seeds_for(2.7)
    assert n == 13  # two percentages of 3,925 images have a noise of 2.2 by the images alone
    found = shares(RELATIONS["difference"], tables(n, 400, (2.7, 0, 0, 0, 0, 0), seed=2))
    assert found["holds"] == pytest.approx(0.8, abs=0.08)


def _difference(table: Table) -> Estimate:
    terms = [(weight, sample(table.results[index], "% top-1")) for weight, index in ((1.0, 0), (-1.0, 1))]
    return estimate([(weight, one) for weight, one in terms if one], table.pool)
