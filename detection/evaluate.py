"""Scores of a trained detector: Detectron2's COCOEvaluator, and also class-agnostic AP, AP of people only, recall of proposals."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import distributed as dist
from torch import nn

from detection.bootstrap import average_recall, columns
from jigclu.evaluation.bootstrap import Array, draw_weights, resamples, uncertainties
from jigclu.training.distributed import RankInfo

COLUMNS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # of Table 4, in COCOeval's order
RESULTS = "coco_instances_results.json"  # the file to which COCOEvaluator writes its boxes
PERSON = "person"
MOST_PROPOSALS = 100  # per image, as COCO's AR@100 takes


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


class Proposals(DatasetEvaluator):
    """The proposals of the detector, whatever class they are of: AR@100, as boxes in COCO's format on rank 0."""

    def __init__(self, network: nn.Module):
        self.latest: list[Instances] = []
        self.hook = network.get_submodule("proposal_generator").register_forward_hook(self._keep)
        self.boxes: list[dict[str, Any]] = []

    def _keep(self, _module: nn.Module, _given: Any, found: tuple[list[Instances], Any]) -> None:
        self.latest = found[0]

    def reset(self) -> None:
        self.boxes = []

    def process(self, inputs: list[dict[str, Any]], outputs: Any) -> None:
        for image, found in zip(inputs, self.latest, strict=True):
            best = found[:MOST_PROPOSALS]  # they are in the order of their scores
            scale = image["width"] / found.image_size[1], image["height"] / found.image_size[0]
            corners = best.proposal_boxes.tensor.cpu() * torch.tensor(scale * 2)
            corners[:, 2:] -= corners[:, :2]
            scores = best.objectness_logits.cpu().tolist()
            self.boxes += [
                {"image_id": image["image_id"], "category_id": 1, "bbox": box, "score": score}
                for box, score in zip(corners.tolist(), scores, strict=True)
            ]

    def evaluate(self) -> dict[str, Any]:
        self.hook.remove()
        parts = comm.gather(self.boxes, dst=0)
        self.boxes = [box for part in parts for box in part]
        return {}


class Scores(NamedTuple):
    """Metrics in percent, and of the bootstrap `half_widths`, `standard_errors` and `resamples`, and every resample's values."""

    metrics: dict[str, float]
    uncertainties: dict[str, Any]
    resampled: dict[str, Array]


def evaluate(network: nn.Module, batches: Counted, name: str, folder: Path) -> Scores:
    """The `COLUMNS` in percent on the registered split `name`, on rank 0 (none on others); the boxes stay in `folder`/RESULTS.

    Also agnostic_ap and agnostic_ap50, which ignore classes, person_ap and person_ap50 if the split has the category, and
    proposal_ar100, the recall of the 100 best proposals. A column that cannot be computed (no object of that size) is left out.
    """
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=True, output_dir=str(folder), use_fast_impl=False)
    proposals = Proposals(network)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        found = inference_on_dataset(network, batches, [evaluator, proposals])
        truth = COCO(MetadataCatalog.get(name).json_file) if found else None
    if truth is None:
        return Scores({}, {}, {})
    scores, drawn = score(truth, json.loads((folder / RESULTS).read_text(encoding="utf-8")), proposals.boxes)
    return Scores(scores, {**uncertainties(drawn), "resamples": resamples(len(truth.getImgIds()))}, drawn)


def score(
    truth: COCO, boxes: list[dict[str, Any]], proposals: list[dict[str, Any]]
) -> tuple[dict[str, float], dict[str, Array]]:
    """The metrics of `evaluate`, in percent, and each one's value in every resample of the images."""
    weights = draw_weights(len(truth.getImgIds()))
    scores: dict[str, float] = {}
    drawn: dict[str, Array] = {}
    kinds = {"": truth.getCatIds(), "agnostic_": truth.getCatIds(), f"{PERSON}_": truth.getCatIds(catNms=[PERSON])}
    for prefix, ids in kinds.items():
        if ids:
            run = _matched(truth, boxes, ids, prefix != "agnostic_")
            shown = COLUMNS if not prefix else ("ap", "ap50")
            scores |= {f"{prefix}{name}": value for name, value in _ap(run).items() if name in shown}
            found = columns(run, weights) if not prefix else columns(run, weights, ("",))
            drawn |= {f"{prefix}{name}": values for name, values in found.items() if name in shown}
    run = _matched(truth, proposals, truth.getCatIds(), False)
    drawn["proposal_ar100"] = average_recall(run, weights)
    scores["proposal_ar100"] = 100 * float(run.stats[8])
    scores = {name: value for name, value in scores.items() if math.isfinite(value)}
    return scores, {name: values for name, values in drawn.items() if name in scores}


def _matched(truth: COCO, boxes: list[dict[str, Any]], ids: list[int], by_class: bool) -> COCOeval:
    """The boxes matched with the objects of the categories `ids`.

    With `by_class` off all objects count as one class, so an object detected under two names is one hit and one false positive.
    """
    nothing = {"image_id": truth.getImgIds()[0], "category_id": ids[0], "bbox": [0.0, 0.0, 1e-3, 1e-3], "score": 0.0}
    if not by_class:  # a class that the data set has, for boxes that have none
        boxes = [{**box, "category_id": ids[0]} for box in boxes]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(truth, truth.loadRes(boxes or [nothing]), "bbox")  # it rejects an empty list
        run.params.catIds, run.params.useCats = ids, int(by_class)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def _ap(run: COCOeval) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl in percent; NaN if no object is annotated."""
    values = [100 * float(value) if value >= 0 else math.nan for value in run.stats[:6]]
    return dict(zip(COLUMNS, values, strict=True))
