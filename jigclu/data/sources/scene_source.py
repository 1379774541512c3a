"""Procedural scenes as a data set: as many as the config says, drawn when they are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jigclu.config import DataConfig, DatasetSpec
from jigclu.data.sources.base import Source, Split
from jigclu.data.sources.scenes import KINDS, scene
from jigclu.data.sources.subsets import by_rule, wanted


@dataclass(frozen=True)
class SceneSource(Source):
    """`paths` are <split>/<index>. A smaller part is the first scenes: classes alternate, so it is balanced."""

    split: Split
    version: str

    def pixels(self, index: int, longest: int) -> np.ndarray:
        return scene(int(str(self.paths[index]).rpartition("/")[2]), self.split, longest)[0]

    def facts(self) -> Iterable[str]:
        return [f"scenes {self.version} {self.split} {len(self.paths)}"]

    def ranked(self, members: np.ndarray) -> np.ndarray:
        return members


@dataclass(frozen=True)
class SceneCollection:
    """`train_images` is how many scenes there are; a subset is a part of those."""

    spec: DatasetSpec

    def open(self, data: DataConfig, split: Split, root: Path) -> SceneSource:
        count = wanted(data, split) or self.spec.images[split]
        source = SceneSource(
            classes=list(KINDS),
            paths=np.array([f"{split}/{i}" for i in range(count)]),
            labels=np.arange(count, dtype=np.int64) % len(KINDS),
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
