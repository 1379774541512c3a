"""The bootstrap of COCO's AP is the one that repeats the evaluation on every resample, and its width is a standard error's."""

from __future__ import annotations

import contextlib
import io
import math
import time
from typing import Any

import helpers.detection  # noqa: F401  (skips this file without Detectron2)
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.bootstrap import average_recall, columns
from detection.evaluate import score
from jigclu.config import METRICS
from jigclu.evaluation.bootstrap import draw_weights, half_width, standard_error

Truth = dict[str, Any]
Boxes = list[dict[str, Any]]


def drawn_set(images: int, seed: int = 0, classes: int = 3) -> tuple[Truth, Boxes]:
    """Annotations and detections: some good, some shifted, some of another class, some of nothing; one crowd an image."""
    rng = np.random.default_rng(seed)
    truth: Boxes = []
    boxes: Boxes = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 6)):
            side = float(rng.choice([20.0, 60.0, 150.0]))
            corner = rng.uniform(0, 300, 2)
            kind = int(rng.integers(1, classes + 1))
            crowd = int(rng.random() < 0.1)
            box = [*corner.tolist(), side, side]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image,
                    "category_id": kind,
                    "bbox": box,
                    "area": side * side,
                    "iscrowd": crowd,
                }
            )
            shift = rng.normal(0, 0.15 * side, 2)
            found = {"image_id": image, "category_id": kind if rng.random() < 0.8 else 1, "score": float(rng.random())}
            boxes.append({**found, "bbox": [*(corner + shift).tolist(), side, side]})
        boxes.append(
            {"image_id": image, "category_id": 2, "score": float(rng.random()), "bbox": [310.0, 310.0, 40.0, 40.0]}
        )
    listed = [{"id": image, "width": 480, "height": 480, "file_name": f"{image}.jpg"} for image in range(1, images + 1)]
    names = [{"id": kind, "name": "person" if kind == 1 else f"kind {kind}"} for kind in range(1, classes + 1)]
    return {"images": listed, "annotations": truth, "categories": names, "info": {}}, boxes


def coco(truth: Truth) -> COCO:
    found = COCO()
    found.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def evaluated(truth: Truth, boxes: Boxes, by_class: bool = True) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco(truth)
        run = COCOeval(known, known.loadRes([dict(box) for box in boxes]), "bbox")
        run.params.useCats = int(by_class)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def repeated(truth: Truth, boxes: Boxes, times: np.ndarray) -> tuple[Truth, Boxes]:
    """The set with every image as often as it was drawn, under new ids."""
    images, annotations, detections = [], [], []
    for image, count in zip(truth["images"], times.tolist(), strict=True):
        for _ in range(count):
            number = len(images) + 1
            images.append({**image, "id": number})
            own = [box for box in truth["annotations"] if box["image_id"] == image["id"]]
            annotations += [{**box, "image_id": number, "id": len(annotations) + at} for at, box in enumerate(own, 1)]
            detections += [{**box, "image_id": number} for box in boxes if box["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, detections


@pytest.mark.parametrize("by_class", [True, False])
def test_every_resample_has_the_ap_of_an_evaluation_of_the_drawn_images(by_class: bool) -> None:
    truth, boxes = drawn_set(14)
    weights = draw_weights(14)[:25]
    run = evaluated(truth, boxes, by_class)
    found, recalls = columns(run, weights), average_recall(run, weights)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert tuple(sorted(found)) == tuple(sorted(names))
    for at, times in enumerate(weights):
        stats = evaluated(*repeated(truth, boxes, times), by_class).stats
        for name, value in zip(names, stats[:6], strict=True):
            assert found[name][at] == pytest.approx(100 * value if value >= 0 else math.nan, abs=1e-9, nan_ok=True), (
                name
            )
        assert recalls[at] == pytest.approx(100 * stats[8], abs=1e-9)


def test_without_resampling_it_is_the_metric_itself() -> None:
    truth, boxes = drawn_set(30, seed=1)
    run = evaluated(truth, boxes)
    once = np.ones((1, 30), np.int16)
    assert columns(run, once)["ap"][0] == pytest.approx(100 * run.stats[0], abs=1e-9)
    assert average_recall(run, once)[0] == pytest.approx(100 * run.stats[8], abs=1e-9)


def test_the_half_width_covers_the_spread_over_new_sets_of_images() -> None:
    """100 sets of 60 images drawn anew: their AP50 spreads as the bootstrap of one set says."""
    aps, widths, errors = [], [], []
    for seed in range(100):
        run = evaluated(*drawn_set(60, seed=100 + seed, classes=1))
        aps.append(100 * float(run.stats[1]))
        if seed < 20:
            values = columns(run, draw_weights(60)[:300], ("",))["ap50"]
            widths.append(half_width(values))
            errors.append(standard_error(values))
    spread = float(np.std(aps, ddof=1))
    assert 0.75 * spread < np.mean(errors) < 1.33 * spread
    assert np.mean(widths) == pytest.approx(1.96 * np.mean(errors), rel=0.1)
    middle = float(np.mean(aps))
    covered = [abs(ap - middle) <= width for ap, width in zip(aps, widths, strict=False)]
    assert np.mean(covered) >= 0.8


def test_the_draw_depends_only_on_the_number_of_images() -> None:
    """So that two jobs, whatever their seeds, are compared on the same resamples."""
    assert np.array_equal(draw_weights(50), draw_weights(50))
    assert draw_weights(50).shape == (1000, 50) and (draw_weights(50).sum(1) == 50).all()
    assert len(draw_weights(5000)) == 200


def test_all_metrics_of_a_few_hundred_images_take_less_than_a_minute() -> None:
    truth, boxes = drawn_set(206, seed=3, classes=20)
    rng = np.random.default_rng(0)
    more = [
        {**box, "score": float(rng.random()), "category_id": int(rng.integers(1, 21))}
        for box in boxes
        for _ in range(6)
    ]
    known = coco(truth)
    began = time.process_time()
    metrics, values = score(known, more, more)
    assert time.process_time() - began < 60
    assert metrics.keys() == values.keys() == set(METRICS["detect"])
    assert all(len(drawn) == 1000 for drawn in values.values())
