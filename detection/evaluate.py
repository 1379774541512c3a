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
from torch import distributed as dist
from torch import nn

from jigclu.training.distributed import RankInfo

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


def precise_batch_norm(network: nn.Module, batches: Iterable[Any], count: int, rank_info: RankInfo) -> None:
    """Every batch norm's running statistics measured anew, over `count` batches (protocols.md §2.6 "TEST.PRECISE_BN").

    The mean over the ranks: fvcore weighs a batch by its own pixels, of which ranks have different numbers.
    """
    network.train()
    if count and get_bn_modules(network):
        with EventStorage():  # d2's heads write to one while they train
            update_bn_stats(network, batches, count)
        for module in get_bn_modules(network) if rank_info.world > 1 else ():
            for statistic in (module.running_mean, module.running_var):
                dist.all_reduce(statistic)
                statistic /= rank_info.world


def evaluate(network: nn.Module, batches: Counted, name: str, folder: Path) -> dict[str, float]:
    """The `COLUMNS` in percent on the registered split `name`, on rank 0 ({} on others); its boxes stay in `folder`/RESULTS.

    Also agnostic_ap and agnostic_ap50, for which every box is of one class, and person_ap and person_ap50 where there are people.
    A column that cannot be computed (no object of that size) is left out.
    """
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=True, output_dir=str(folder), use_fast_impl=False)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        found = inference_on_dataset(network, batches, evaluator)
        known = COCO(MetadataCatalog.get(name).json_file) if found else None
    if known is None:
        return {}
    boxes = json.loads((folder / RESULTS).read_text())
    if boxes:
        scores = {ours: float(found["bbox"][theirs]) for ours, theirs in COLUMNS.items()}
    else:  # d2 says NaN throughout; nothing found is a precision of 0 where there was something to find
        scores = dict(zip(COLUMNS, _ap(known, [], known.getCatIds(), True), strict=True))
    for prefix, ids in (("agnostic", known.getCatIds()), (PERSON, known.getCatIds(catNms=[PERSON]))):
        if ids:
            ap, ap50, *_ = _ap(known, boxes, ids, prefix == PERSON)
            scores |= {f"{prefix}_ap": ap, f"{prefix}_ap50": ap50}
    return {key: value for key, value in scores.items() if math.isfinite(value)}


def _ap(known: COCO, boxes: list[dict[str, Any]], ids: list[int], by_class: bool) -> list[float]:
    """AP, AP50, AP75, APs, APm, APl in percent over the categories `ids`; NaN where no object is annotated.

    Not `by_class`: as if there were one class. A detector that finds one object under two names is wrong once.
    """
    nothing = {"image_id": known.getImgIds()[0], "category_id": ids[0], "bbox": [0.0, 0.0, 1e-3, 1e-3], "score": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(known, known.loadRes(boxes or [nothing]), "bbox")  # it takes no empty list
        run.params.catIds, run.params.useCats = ids, int(by_class)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [100 * float(value) if value >= 0 else math.nan for value in run.stats[:6]]
