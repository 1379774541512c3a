"""The measured workload: the device, the sizes for which its targets are stated, and generated images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jigclu.config import PretrainConfig, parse
from jigclu.data.canvases import CanvasDataset
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.data.sources.folders import FolderSource
from jigclu.data.sources.scenes import KINDS, scene
from jigclu.training.distributed import RankInfo, join_ranks


@dataclass(frozen=True)
class Workload:
    """ResNet-50, 224 px, batch 256 on a GPU; ResNet-18, 64 px, batch 128 on a CPU; bfloat16 on both."""

    rank_info: RankInfo
    backbone: str
    image_size: int
    canvas: int
    batch_size: int
    photo: tuple[int, int]  # width and height of an image file, pixels

    @property
    def device(self) -> torch.device:
        return self.rank_info.device

    @property
    def words(self) -> str:
        return f"{self.backbone}, {self.image_size} px of a canvas of {self.canvas}, batch {self.batch_size}, bfloat16"

    def config(self, images: int = 0, **more: object) -> PretrainConfig:
        """The measured pretraining's config on `images` images (0: one batch), with `more` overriding its values."""
        values = {
            "data": {"name": "scenes", "canvas": self.canvas, "train_images": images or self.batch_size, "val_images": 10},
            "backbone": self.backbone, "image_size": self.image_size, "batch_size": self.batch_size, "precision": "bfloat16",
        }  # fmt: skip
        return parse("pretrain", values | more)


def default_workload() -> Workload:
    rank_info = join_ranks()
    if rank_info.device.type == "cuda":
        return Workload(rank_info, "resnet50", 224, 512, 256, (500, 375))
    return Workload(rank_info, "resnet18", 64, 128, 128, (170, 128))


@contextmanager
def photographs(workload: Workload, count: int) -> Iterator[CanvasDataset]:
    """`count` scenes as JPEG files (quality 90) in a temporary folder, like an image data set on a disk."""
    width, height = workload.photo
    with tempfile.TemporaryDirectory(prefix="jigclu-bench-") as folder:
        paths = []
        for index in range(count):
            path = Path(folder) / KINDS[index % len(KINDS)].replace(" ", "-") / f"{index}.JPEG"
            path.parent.mkdir(exist_ok=True)
            square = scene(index, "train", width)[0].transpose(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(square[:height])).save(path, quality=90)
            paths.append(path)
        source = FolderSource(
            classes=list(KINDS),
            paths=np.array([str(path.relative_to(folder)) for path in paths]),
            labels=np.arange(count, dtype=np.int64) % len(KINDS),
            folder=Path(folder),
            sizes=np.array([path.stat().st_size for path in paths], dtype=np.int64),
        )
        yield CanvasDataset(source, workload.canvas)


def one_batch(workload: Workload, dataset: CanvasDataset) -> Batch:
    return next(batches(dataset, [list(range(workload.batch_size))], 0, Unreadable(), substitute=True))
