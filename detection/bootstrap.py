"""Bootstrap over images of COCO's AP, from the matches of one COCOeval: no evaluation is repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools.cocoeval import COCOeval

from jigclu.evaluation.bootstrap import Array, Ranked, average_precision, recall

AREAS = ("", "small", "medium", "large")  # COCOeval's areaRngLbl; "": all


def matches(run: COCOeval, area: int = 0) -> Iterator[list[Ranked]]:
    """For every category with an object: its ranked detections at each IoU threshold. `run` has been evaluated."""
    per_area = len(run.params.imgIds)
    categories = len(run.params.catIds) if run.params.useCats else 1
    for category in range(categories):
        start = (category * len(run.params.areaRng) + area) * per_area
        found = [(index, entry) for index, entry in enumerate(run.evalImgs[start : start + per_area]) if entry]
        objects = np.zeros(per_area, np.int64)
        for index, entry in found:
            objects[index] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        if not objects.any():
            continue
        most = run.params.maxDets[-1]
        scores = np.concatenate([entry["dtScores"][:most] for _, entry in found])
        order = np.argsort(-scores, kind="mergesort")  # as COCOeval: images stay in their order among equals
        image = np.concatenate([np.full(len(entry["dtScores"][:most]), index) for index, entry in found])[order]
        matched = np.concatenate([entry["dtMatches"][:, :most] for _, entry in found], axis=1)[:, order] > 0
        ignored = np.concatenate([entry["dtIgnore"][:, :most] for _, entry in found], axis=1)[:, order] > 0
        yield [
            Ranked(image.astype(np.int64), hit & ~skip, ~skip, objects)
            for hit, skip in zip(matched, ignored, strict=True)
        ]


def columns(run: COCOeval, weights: Array, areas: Sequence[str] = AREAS) -> dict[str, Array]:
    """Each resample's ap, ap50, ap75, ap_small, ap_medium and ap_large in percent; of the areas that are wanted.

    As in COCOeval, a category counts where the resample has an object of it.
    """
    found = {}
    for name in areas:
        ranked = matches(run, AREAS.index(name))
        curves = [np.stack([average_precision(at, weights) for at in category]) for category in ranked]
        if not curves:
            continue
        by_threshold = np.stack(curves, axis=1)  # (thresholds, categories, resamples)
        found[f"ap_{name}" if name else "ap"] = _mean(by_threshold.reshape(-1, len(weights)))
        if not name:
            found |= {f"ap{round(100 * at)}": _mean(by_threshold[_threshold(run, at)]) for at in (0.5, 0.75)}
    return found


def average_recall(run: COCOeval, weights: Array) -> Array:
    """(resamples,) recall in percent, averaged over the IoU thresholds: COCO's AR."""
    return _mean(np.stack([recall(at, weights) for category in matches(run) for at in category]))


def _threshold(run: COCOeval, at: float) -> int:
    return int(np.argmin(np.abs(np.asarray(run.params.iouThrs) - at)))


def _mean(values: Array) -> Array:
    """The mean over the first axis of what is there; NaN where nothing is."""
    there = np.isfinite(values)
    counts = there.sum(0)
    sums: Array = np.where(there, values, 0).sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
