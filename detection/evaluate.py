"""Scores of a trained detector: Detectron2's COCOEvaluator, and also class-agnostic AP and AP of people only."""

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
from torch import distributed as dist
from torch import nn

from jigclu.training.distributed import RankInfo

# Metric name here -> Detectron2's: the six columns of Table 4.
COLUMNS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
RESULTS = "coco_instances_results.json"  # the file to which COCOEvaluator writes its boxes
PERSON = "person"


class Counted:
    """An iterable with a length, as inference_on_dataset requires."""

    def __init__(self, batches: Iterator[Any], length: int):
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self.batches


def precise_batch_norm(network: nn.Module, batches: Iterable[Any], count: int, rank_info: RankInfo) -> None:
    """Recompute every batch norm's running statistics over `count` batches (protocols.md §2.6 "TEST.PRECISE_BN").

    Ranks are averaged equally, although fvcore weights batches by their pixels and ranks have different numbers of them.
    """
    network.train()
    if count and get_bn_modules(network):
        with EventStorage():  # d2's heads log to it in training mode
            update_bn_stats(network, batches, count)
        for module in get_bn_modules(network) if rank_info.world > 1 else ():
            for statistic in (module.running_mean, module.running_var):
                dist.all_reduce(statistic)
                statistic /= rank_info.world


def evaluate(network: nn.Module, batches: Counted, name: str, folder: Path) -> dict[str, float]:
    """The `COLUMNS` in percent on the registered split `name`, on rank 0 ({} on others); the boxes stay in `folder`/RESULTS.

    Also agnostic_ap and agnostic_ap50, which ignore classes, and person_ap and person_ap50 if the split has the category.
    A column that cannot be computed (no object of that size) is left out.
    """
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=True, output_dir=str(folder), use_fast_impl=False)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        found = inference_on_dataset(network, batches, evaluator)
        truth = COCO(MetadataCatalog.get(name).json_file) if found else None
    if truth is None:
        return {}
    boxes = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    if boxes:
        scores = {metric: float(found["bbox"][column]) for metric, column in COLUMNS.items()}
    else:  # d2 returns NaN for no boxes, but the precision is 0 if there was anything to find
        scores = dict(zip(COLUMNS, _ap(truth, [], truth.getCatIds(), True), strict=True))
    for prefix, ids in (("agnostic", truth.getCatIds()), (PERSON, truth.getCatIds(catNms=[PERSON]))):
        if ids:
            ap, ap50, *_ = _ap(truth, boxes, ids, prefix == PERSON)
            scores |= {f"{prefix}_ap": ap, f"{prefix}_ap50": ap50}
    return {key: value for key, value in scores.items() if math.isfinite(value)}


def _ap(truth: COCO, boxes: list[dict[str, Any]], ids: list[int], by_class: bool) -> list[float]:
    """AP, AP50, AP75, APs, APm, APl in percent over the categories `ids`; NaN if no object is annotated.

    With `by_class` off all objects count as one class, so an object detected under two names is one hit and one false positive.
    """
    nothing = {"image_id": truth.getImgIds()[0], "category_id": ids[0], "bbox": [0.0, 0.0, 1e-3, 1e-3], "score": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(truth, truth.loadRes(boxes or [nothing]), "bbox")  # it rejects an empty list
        run.params.catIds, run.params.useCats = ids, int(by_class)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [100 * float(value) if value >= 0 else math.nan for value in run.stats[:6]]
