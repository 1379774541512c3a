"""Scores of a trained detector: Detectron2's COCOEvaluator, and beside it AP of any class and of people alone."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

# Ours -> Detectron2's, the six columns of Table 4.
COLUMNS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
RESULTS = "coco_instances_results.json"  # the name under which COCOEvaluator leaves its boxes
PERSON = "person"


class Counted:
    """An iterable with a length, as inference_on_dataset wants one."""

    def __init__(self, batches: Iterator[Any], length: int):
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self.batches


def precise_batch_norm(network: nn.Module, batches: Iterable[Any], count: int) -> None:
    """Every batch norm's running statistics measured anew, over `count` batches (protocols.md §2.6 "TEST.PRECISE_BN")."""
    network.train()
    if count and get_bn_modules(network):
        with EventStorage():  # d2's heads write to one while they train
            update_bn_stats(network, batches, count)


def evaluate(network: nn.Module, batches: Counted, name: str, folder: Path) -> dict[str, float]:
    """The `COLUMNS` in percent on the registered split `name`, on rank 0 ({} on others); its boxes stay in `folder`/RESULTS.

    Also agnostic_ap and agnostic_ap50, for which every box is of one class, and person_ap and person_ap50 where there are people. A
    column that cannot be computed (no object of that size) is left out; with no box at all every column is 0.
    """
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=True, output_dir=str(folder), use_fast_impl=False)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        found = inference_on_dataset(network, batches, evaluator)
    if not found:
        return {}
    truth = MetadataCatalog.get(name).json_file
    boxes = json.loads((folder / RESULTS).read_text())
    scores = {ours: float(found["bbox"][theirs]) for ours, theirs in COLUMNS.items()}
    if not boxes:  # d2 says NaN, for pycocotools takes no empty list; nothing found is a precision of 0
        scores = dict.fromkeys(scores, 0.0)
    scores |= _of_one_class("agnostic", truth, boxes, None) | _of_one_class("person", truth, boxes, PERSON)
    return {key: value for key, value in scores.items() if math.isfinite(value)}


def _of_one_class(prefix: str, truth: str, boxes: list[dict[str, Any]], category: str | None) -> dict[str, float]:
    """AP and AP50 in percent of one category; None: as if there were a single one. {} where no such object is annotated."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(truth)
        ids = known.getCatIds(catNms=[category]) if category else known.getCatIds()
        if not ids or not known.getAnnIds(catIds=ids, iscrowd=False):
            return {}
        if not any(box["category_id"] in ids for box in boxes):
            return {f"{prefix}_ap": 0.0, f"{prefix}_ap50": 0.0}
        run = COCOeval(known, known.loadRes(boxes), "bbox")
        run.params.catIds, run.params.useCats = ids, int(category is not None)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {f"{prefix}_ap": 100 * float(run.stats[0]), f"{prefix}_ap50": 100 * float(run.stats[1])}
