"""The noise model: Student's distribution, pooling over cells and seeds, pairing, and McNemar's test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from orchestrate.planning import scale_notes
from reports.statistics import student
from reports.statistics.mcnemar import mcnemar
from reports.statistics.noise import ENOUGH, Pool, Recorded, Sample, estimate, holm, pool

KIND = "linear.top1 imagenette"


def cell(*values: float, seeds: tuple[int, ...] = (), images: float | None = 0.0, **more: Any) -> Sample:
    return Sample(values, seeds or tuple(range(len(values))), images, **{"kind": KIND, **more})


def test_students_quantiles_and_tails_are_those_of_scipy() -> None:
    for df in (1.0, 2.0, 4.7, 30.0, 2000.0, math.inf):
        known = scipy.stats.norm if math.isinf(df) else scipy.stats.t(df)
        for probability in (0.2, 0.025, 0.0025):
            assert student.quantile(probability, df) == pytest.approx(known.isf(probability), rel=1e-6)
        for t in (-2.0, 0.0, 0.3, 5.0):
            assert student.tail(t, df) == pytest.approx(known.sf(t), abs=1e-9)


def test_the_spread_is_pooled_over_cells_of_one_kind_and_paired_by_seed() -> None:
    rows = [(60.0, 62.0, 61.0), (50.0, 53.0, 52.0), (40.0, 41.0, 42.0)]
    found = pool([cell(*row) for row in rows])
    assert found.within[KIND].df == 6 and found.paired[KIND].df == 4
    assert found.within[KIND].total == pytest.approx(sum(2 * np.var(row, ddof=1) for row in rows))
    values = np.array(rows)
    rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    assert found.paired[KIND].total == pytest.approx((rest**2).sum())
    pair = estimate([(1, cell(*rows[0])), (-1, cell(*rows[1]))], found)
    assert pair.paired and pair.df == 4 and pair.n == 3
    assert pair.width() == pytest.approx(scipy.stats.t(4).isf(0.025) * math.sqrt(2 * (rest**2).sum() / 4 / 3))


def test_what_a_seed_adds_to_every_cell_is_no_noise_of_a_difference() -> None:
    shared = np.array([0.0, 5.0, -5.0])
    first, second = (cell(*(base + shared + own)) for base, own in ((60, [0, 0.1, 0]), (50, [0.1, 0, 0])))
    found = pool([first, second])
    assert estimate([(1, first), (-1, second)], found).width() < 1 < 5 < estimate([(1, first)], found).width()


def test_other_seeds_are_not_paired() -> None:
    first, second = cell(60.0, 61.0), cell(50.0, 52.0, seeds=(2, 3))
    assert not estimate([(1, first), (-1, second)], pool([first, second])).paired


def test_a_kind_with_few_seeds_uses_the_whole_scale_if_that_spread_is_larger() -> None:
    quiet = cell(60.0, 60.1)
    loud = [cell(*row, kind="finetune.top1 imagenette") for row in ((50.0, 56.0, 53.0), (40.0, 45.0, 41.0))]
    found = pool([quiet, *loud])
    assert found.within[KIND].df < ENOUGH
    variance = found.variance(KIND, paired=False)
    assert variance and variance.df == 5 and variance.value > 5


def test_two_equal_seeds_do_not_mean_no_noise() -> None:
    equal = [cell(60.0, 60.0, images=0.64), cell(50.0, 50.0, images=0.64)]
    found = estimate([(1, equal[0]), (-1, equal[1])], pool(equal))
    assert found.width() == pytest.approx(1.96 * math.sqrt(1.28), rel=1e-3)


def test_noise_is_never_less_than_the_images_part_and_one_seed_adds_both() -> None:
    recorded = Pool(recorded=(Recorded(KIND, 0.5, 1e9, "x"),))
    many = [cell(*([value] * 4), images=1.0) for value in (60.0, 50.0)]
    assert estimate([(1, many[0]), (-1, many[1])], recorded).width() == pytest.approx(1.96 * math.sqrt(2), rel=1e-3)
    one = [cell(value, images=1.0) for value in (60.0, 50.0)]
    assert estimate([(1, one[0]), (-1, one[1])], recorded).width() == pytest.approx(1.96 * math.sqrt(2.5), rel=1e-3)


def test_a_recorded_spread_counts_until_the_store_knows_more() -> None:
    recorded = (Recorded("linear.top1", 0.5, 8, "x"),)
    assert pool([cell(60.0, 64.0)], recorded).variance(KIND, False) == (0.25, 8, "x")
    measured = pool([cell(*np.linspace(60, 64, 10))], recorded).variance(KIND, False)
    assert measured and measured.source == "" and measured.df == 9
    assert pool([], recorded).variance("knn.top1 imagenette", False) is None


def test_from_many_seeds_on_a_difference_has_its_own_spread() -> None:
    rng = np.random.default_rng(0)
    first, second = (cell(*rng.normal(50, 0.1, 8)) for _ in range(2))
    loud = [cell(*rng.normal(50, 9, 8)) for _ in range(3)]
    found = estimate([(1, first), (-1, second)], pool([first, second, *loud]))
    assert found.df == 7 and found.width() < 0.5


def test_a_sum_over_kinds_has_satterthwaites_degrees_of_freedom() -> None:
    kinds = {KIND: 4, "linear.top1 imagenet1k": 8}
    pooled = Pool(recorded=tuple(Recorded(kind, 1.0, df, "x") for kind, df in kinds.items()))
    terms = [(1.0, cell(1.0)), (-1.0, cell(1.0)), (-1.0, cell(1.0, kind="linear.top1 imagenet1k"))]
    assert estimate(terms, pooled).df == pytest.approx(9 / (4 / 4 + 1 / 8))


def test_time_has_the_noise_of_its_own_seeds_only() -> None:
    hours = [cell(*values, kind="pretrain.hours", nature="machine") for values in ((1.0, 1.2), (3.0, 3.4))]
    found = estimate([(1, hours[0]), (-1, hours[1])], Pool())
    assert found.width() == pytest.approx(12.706 * 0.1, rel=1e-3)  # the differences are -2.0 and -2.2
    assert estimate([(1, cell(1.0, nature="machine")), (-1, cell(3.0, nature="machine"))], Pool()).width() == 0


def test_holm_rejects_step_by_step() -> None:
    assert holm([0.004, 0.03, 0.02], 0.05) == [True, True, True]
    assert holm([0.004, 0.03, 0.026], 0.05) == [True, False, False]
    assert holm([0.02, 0.02, 0.02], 0.05) == [False] * 3 and holm([]) == []


@pytest.mark.parametrize(("first", "second"), [(30, 12), (0, 0), (5, 5), (900, 700)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_images(first: int, second: int) -> None:
    both = 301  # not a whole number of bytes
    right = np.array([1] * first + [0] * second + [1] * both)
    other = np.array([0] * first + [1] * second + [1] * both)
    found = mcnemar(np.packbits(right).tobytes(), np.packbits(other).tobytes(), len(right))
    assert found and (found.first, found.second) == (first, second)
    wanted = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert found.p == pytest.approx(wanted, rel=0.05)
    assert mcnemar(b"\x00", np.packbits(right).tobytes(), len(right)) is None


def test_every_scale_has_readable_notes_with_sources() -> None:
    for scale in ("paper", "small", "mini", "smoke"):
        assert all(one.source for one in scale_notes.scale_notes(scale).spread)
