"""A COCO-format split -> Detectron2's data: registered for its evaluator, read and augmented by its mapper, batched here.

A batch and the random numbers of each image in it depend only on the seed and the batch's position in the training, not on
ranks, workers or a resume. Detectron2's own loader has no such position, so it is not used.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from jigclu import counter_rng
from jigclu.config import ConfigError
from jigclu.data.loader import MOST_UNREADABLE, Groups, Unreadable, loaded
from jigclu.data.sources.coco import DetectionSplit
from jigclu.training.distributed import RankInfo

# (batches, batch, 2): each image's key (index, epoch), where epoch counts the earlier passes over the images
Order = np.ndarray


def register(name: str, split: DetectionSplit, folder: Path) -> list[dict[str, Any]]:
    """Register the split with Detectron2 as `name`, with its annotations in `folder`; returns its images as d2's dicts.

    Images and boxes are as d2 reads them; `iscrowd` boxes are kept, because the evaluation ignores detections on them.
    """
    annotations = folder / f"{name}.json"
    annotations.write_text(json.dumps(split.annotations), encoding="utf-8")
    for catalog in (DatasetCatalog, MetadataCatalog):  # they are global, and this process may have run a job before
        if name in catalog.list():
            catalog.remove(name)
    register_coco_instances(name, {}, str(annotations), str(split.folder))
    return list(DatasetCatalog.get(name))


def of_classes(split: DetectionSplit, classes: str) -> DetectionSplit:
    """The split as a detector of one class sees it; `all` changes nothing.

    `object`: every box is of the one class "object". `person`: only the boxes of people stay.

    Raises:
        ConfigError: the data set has no category of that name.
    """
    if classes == "all":
        return split
    annotations = split.annotations
    if classes == "object":
        boxes = [{**box, "category_id": 1} for box in annotations["annotations"]]
        return replace(
            split, annotations={**annotations, "annotations": boxes, "categories": [{"id": 1, "name": "object"}]}
        )
    kept = [category for category in annotations["categories"] if category["name"] == classes]
    if not kept:
        raise ConfigError(f"detector.classes: the data set has no category {classes!r}; valid here: all, object")
    boxes = [box for box in annotations["annotations"] if box["category_id"] == kept[0]["id"]]
    return replace(split, annotations={**annotations, "annotations": boxes, "categories": kept})


def with_objects(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images with at least one object to learn (d2's DATALOADER.FILTER_EMPTY_ANNOTATIONS, its default)."""
    return [image for image in images if any(not box.get("iscrowd", 0) for box in image["annotations"])]


def order(images: list[dict[str, Any]], seed: int, batches: int, batch: int) -> Order:
    """(batches, batch, 2) int32 keys: epochs over the images, each in a new order.

    Wide and tall images are in separate batches, to reduce padding (d2's DATALOADER.ASPECT_RATIO_GROUPING, its default). A batch
    comes when its last image does.

    Raises:
        ConfigError: there are no images.
    """
    if not images:
        raise ConfigError("no image of the train split has an object in it")
    wide = [image["width"] > image["height"] for image in images]
    keys = np.empty((batches, batch, 2), np.int32)
    waiting: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    full = 0
    for epoch in count():
        for index in counter_rng.permutation(seed, counter_rng.SHUFFLE, epoch, 0, len(images)).tolist():
            group = waiting[wide[index]]
            group.append((index, epoch))
            if len(group) == batch:
                keys[full] = group
                group.clear()
                full += 1
                if full == batches:
                    return keys
    raise AssertionError


class Read(NamedTuple):
    """The mapper's image, None if no image could be read, and the files that could not be read."""

    image: dict[str, Any] | None
    broken: list[str]


class Mapped:
    """Images by key through Detectron2's mapper. Its random numbers (numpy's global ones) are seeded by the key.

    `substitute` (training): an unreadable image is replaced by the next readable one, as in the other stages. Errors are returned
    as values, because an exception raised in a worker loses its type.
    """

    def __init__(self, images: list[dict[str, Any]], mapper: DatasetMapper, seed: int, substitute: bool):
        self.images, self.mapper, self.seed, self.substitute = images, mapper, seed, substitute

    def __getitem__(self, key: tuple[int, int]) -> Read:
        index, epoch = key
        broken: list[str] = []
        before = np.random.get_state()
        np.random.seed([self.seed & 0xFFFFFFFF, self.seed >> 32, index, epoch])
        try:
            while len(broken) <= MOST_UNREADABLE * len(self.images):
                image = self.images[(index + len(broken)) % len(self.images)]
                try:
                    return Read(self.mapper(image), broken)
                except (
                    OSError,
                    SyntaxError,
                    ValueError,
                ):  # SyntaxError: a broken PNG; ValueError: not the annotated size
                    broken.append(image["file_name"])
                if not self.substitute:
                    break
            return Read(None, broken)
        finally:
            np.random.set_state(before)


def train_batches(
    cfg: CfgNode,
    images: list[dict[str, Any]],
    seed: int,
    keys: Order,
    workers: int,
    rank_info: RankInfo,
    unreadable: Unreadable,
) -> Generator[list[dict[str, Any]], None, None]:
    """This rank's part of every batch of `keys`.

    Raises:
        ConfigError: the batch is not divisible by the ranks.
        DataError: too many images are unreadable.
    """
    batch = keys.shape[1]
    if batch % rank_info.world:
        raise ConfigError(f"a global batch of {batch} is not divisible by {rank_info.world} ranks")
    local = batch // rank_info.world
    share = keys[:, rank_info.rank * local : (rank_info.rank + 1) * local]
    return _readable(Mapped(images, DatasetMapper(cfg, True), seed, True), _Groups(share), workers, unreadable)


def _readable(
    dataset: Mapped, groups: Groups, workers: int, unreadable: Unreadable
) -> Generator[list[dict[str, Any]], None, None]:
    """Batches of the readable images; a batch without any is skipped."""
    with closing(loaded(dataset, groups, workers, list)) as stream:
        for batch in stream:
            for path in (path for read in batch for path in read.broken):
                unreadable.report(path, len(dataset.images))
            if images := [read.image for read in batch if read.image is not None]:
                yield images


class _Groups:
    """Rows of an array as the loader's groups, without building a list of 180,000 lists."""

    def __init__(self, keys: Order):
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(int(index), int(epoch)) for index, epoch in row] for row in self.keys)


def test_batches(
    cfg: CfgNode, images: list[dict[str, Any]], workers: int, rank_info: RankInfo, unreadable: Unreadable
) -> Generator[list[dict[str, Any]], None, None]:
    """This rank's share of the images, in batches of one as in d2's test."""
    share = [[(index, 0)] for index in range(rank_info.rank, len(images), rank_info.world)]
    return _readable(Mapped(images, DatasetMapper(cfg, False), 0, False), share, workers, unreadable)
