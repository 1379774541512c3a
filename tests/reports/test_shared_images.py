"""The noise of cells whose validation images are the same: image by image, by the jobs' `correct.bits`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.claims import known, result

from reports.records import Result
from reports.statistics.noise import estimate
from reports.verdicts.samples import sample


def _bits(right: np.ndarray) -> bytes:
    return np.packbits(right.astype(bool)).tobytes()


def _on_images(key: str, *right: np.ndarray, fingerprint: str = "val") -> Result:
    """A cell whose seeds have these images right."""
    cell = result(key, [100 * one.mean() for one in right], images=len(right[0]), job={"fingerprint": fingerprint})
    return replace(cell, jobs=tuple(replace(j, correct=_bits(one)) for j, one in zip(cell.jobs, right, strict=True)))


def test_images_that_are_hard_for_both_cells_drop_out_of_their_difference() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(3925) < 0.46
    second = np.where(rng.random(3925) < 0.2, ~first, first)  # a fifth of the images decide
    pair = [_on_images("a", first), _on_images("b", second)]
    samples = [sample(one, "% top-1") for one in pair]
    terms = [(weight, one) for weight, one in zip((1.0, -1.0), samples, strict=True) if one]
    found = estimate(terms, known(1e-9))
    apart = first.astype(float) - second.astype(float)
    assert found.images_se == pytest.approx(100 * apart.std() / math.sqrt(3925))
    assert found.images_se < 0.75  # without the bits 1.12
    alone = [estimate([(1.0, one)], known(1e-9)).images_se for one in samples if one]
    shares = (first.mean(), second.mean())
    assert alone == pytest.approx([100 * math.sqrt(p * (1 - p) / 3925) for p in shares])
    other = sample(_on_images("b", second, fingerprint="other images"), "% top-1")
    assert other and samples[0]
    apart_se = estimate([(1.0, samples[0]), (-1.0, other)], known(1e-9)).images_se
    assert apart_se == pytest.approx(math.hypot(*alone))


@pytest.mark.parametrize("n", [1, 3])
def test_equal_methods_on_shared_images_are_decided_in_at_most_5_percent(n: int) -> None:
    """Image by image: most images are as hard for one method as for the other, and each seed has some luck."""
    rng, decided, draws = np.random.default_rng(n), 0, 300
    for _ in range(draws):
        hard = rng.normal(0, 2.0, 1000)
        cells = []
        for key in "ab":
            suits = hard + rng.normal(0, 0.7, 1000)
            cells.append(_on_images(key, *(suits + rng.normal(0, 0.5, 1000) > 0 for _ in range(n))))
        samples = [sample(one, "% top-1") for one in cells]
        found = estimate([(w, one) for w, one in zip((1.0, -1.0), samples, strict=True) if one], known(0.3))
        decided += abs(found.value) > found.width()
    assert decided / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    assert decided > 0
