"""Bootstrap over images of an average precision: how far another draw of the validation images would move it. Numpy only.

A resample gives every image a weight, how often it was drawn; all resamples are scored at once from the matches of one evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jigclu.files import write_json

RESAMPLED = "resampled.json"  # in a job's folder
RESAMPLES = 1000
FEWEST = 200
MOST_WEIGHTS = 1_000_000  # resamples times images
LEVEL = 0.95
THRESHOLDS = np.linspace(0.0, 1.0, 101)  # of the recall, as COCO's evaluation samples its curve
BLOCK = 4_000_000  # elements of the largest array
SEED = 20_210_619
Array = np.ndarray


def resamples(images: int) -> int:
    """How many resamples are drawn: 1,000, at 5,000 images 200, so that they take less than two minutes."""
    return min(RESAMPLES, max(FEWEST, MOST_WEIGHTS // images))


def draw_weights(images: int) -> Array:
    """(resamples, images) int16: how often each image was drawn.

    The same for every job with that many images, whatever its seed: two encoders are compared on the same resamples.
    """
    generator = np.random.Generator(np.random.Philox(key=[SEED, images]))
    return generator.multinomial(images, np.full(images, 1 / images), size=resamples(images)).astype(np.int16)


class Ranked(NamedTuple):
    """Detections (or cells) of one kind, best first, and the objects that they should find."""

    image: Array  # (n,) index of its image
    hit: Array  # (n,) bool: it found an object
    counted: Array  # (n,) bool: it is a hit or a false alarm; False: ignored
    objects: Array  # (images,) objects to find


def average_precision(ranked: Ranked, weights: Array) -> Array:
    """(resamples,) COCO's average precision in percent: interpolated, at 101 recalls. NaN where there is no object.

    Equal to COCOeval on the drawn images: precision is at its best just after a hit, so only hits are looked at.
    """
    total = weights @ ranked.objects.astype(np.int64)
    found = np.full(len(weights), np.nan)
    for rows, hits, counted in _at_hits(ranked, weights):
        objects = total[rows, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.nan_to_num(hits / counted)
            reached = np.searchsorted(THRESHOLDS, hits / objects, side="right")
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        share = np.diff(reached, axis=1, prepend=0) / len(THRESHOLDS)
        found[rows] = np.where(objects[:, 0] > 0, 100 * (envelope * share).sum(1), np.nan)
    return found


def recall(ranked: Ranked, weights: Array) -> Array:
    """(resamples,) found objects in percent. NaN where there is no object."""
    total = (weights @ ranked.objects.astype(np.int64)).astype(float)
    hits = weights @ np.bincount(ranked.image[ranked.hit], minlength=weights.shape[1])
    return 100 * hits / np.where(total > 0, total, np.nan)


def _at_hits(ranked: Ranked, weights: Array) -> Iterator[tuple[slice, Array, Array]]:
    """Blocks of resamples: (rows, hits so far, counted so far), both (rows, hits) at the places of the hits."""
    places = np.flatnonzero(ranked.hit & ranked.counted)
    step = max(1, BLOCK // max(1, len(ranked.image)))
    for start in range(0, len(weights), step):
        rows = slice(start, min(start + step, len(weights)))
        drawn = weights[rows][:, ranked.image]
        counted = np.cumsum(drawn * ranked.counted, axis=1, dtype=np.int64)[:, places]
        yield rows, np.cumsum(drawn[:, places], axis=1, dtype=np.int64), counted


def standard_error(values: Array) -> float:
    """The spread of a metric over the resamples; NaN if no resample has it."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")


def half_width(values: Array) -> float:
    """Half the width of the interval that holds the middle 95 % of the resamples; NaN if no resample has the metric."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return float("nan")
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(high - low) / 2


def keep_resampled(folder: Path, values: dict[str, Array]) -> None:
    """Write RESAMPLED: metric -> its value in every resample, null where it has none.

    Jobs with as many images have the same resamples, so the values of two jobs can be subtracted: the interval of the
    differences is narrower than that of two numbers apart, because hard images are hard for both.
    """
    write_json(
        folder / RESAMPLED,
        {
            name: [round(value, 4) if np.isfinite(value) else None for value in drawn.tolist()]
            for name, drawn in values.items()
        },
    )


def uncertainties(values: dict[str, Array]) -> dict[str, dict[str, float]]:
    """`half_widths` and `standard_errors` of every metric, as result.json has them; metrics without a finite one are left out."""
    kinds = {"half_widths": half_width, "standard_errors": standard_error}
    return {
        kind: {name: found for name, drawn in values.items() if np.isfinite(found := of(drawn))}
        for kind, of in kinds.items()
    }
