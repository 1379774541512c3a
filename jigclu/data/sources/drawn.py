"""Drawn images as data sets: as many scenes or textures as the config says, drawn when they are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jigclu.config import DataConfig, DatasetSpec
from jigclu.data.sources import scenes, textures
from jigclu.data.sources.base import Source, Split
from jigclu.data.sources.subsets import by_rule, wanted

CLASSES = {"scenes": list(scenes.KINDS), "textures": list(textures.KINDS)}


def draw(name: str, index: int, split: str, size: int) -> np.ndarray:
    """Image `index` of the data set's split, (3, size, size) uint8."""
    return scenes.scene(index, split, size)[0] if name == "scenes" else textures.texture(index, split, size)[0]


@dataclass(frozen=True)
class DrawnSource(Source):
    """`paths` are <split>/<index>. A smaller part is the first images: classes alternate, so it is balanced."""

    name: str
    split: Split
    version: str

    def pixels(self, index: int, longest: int) -> np.ndarray:
        return draw(self.name, int(str(self.paths[index]).rpartition("/")[2]), self.split, longest)

    def facts(self) -> Iterable[str]:
        return [f"{self.name} {self.version} {self.split} {len(self.paths)}"]

    def ranked(self, members: np.ndarray) -> np.ndarray:
        return members


@dataclass(frozen=True)
class DrawnCollection:
    """`train_images` is how many images there are; a subset is a part of those."""

    spec: DatasetSpec

    def open(self, data: DataConfig, split: Split, root: Path) -> DrawnSource:
        count, classes = wanted(data, split) or self.spec.images[split], CLASSES[self.spec.name]
        source = DrawnSource(
            classes=classes,
            paths=np.array([f"{split}/{i}" for i in range(count)]),
            labels=np.arange(count, dtype=np.int64) % len(classes),
            name=self.spec.name,
            split=split,
            version=data.version,
        )
        return by_rule(source, data.subset) if data.subset and split == "train" else source

    def fingerprint(self, data: DataConfig, split: Split, root: Path) -> str:
        return self.open(data, split, root).fingerprint

    def check(self, data: DataConfig, root: Path) -> None:
        """Nothing can be missing."""

    def verified(self, data: DataConfig, root: Path) -> str:
        return "drawn when read, no files"
