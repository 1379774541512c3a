"""Data sets that are folders of images: Imagenette, ImageNet-1k, and ImageNet-100, which is 100 folders of it.

<root>/imagenette/{train,val}/<wnid>/*.JPEG    <root>/imagenet1k/{train,val}/<wnid>/*
<root>/lists/{imagenet100,1percent,10percent}.txt    <root>/imagenette/splits/simclr_{1,10}percent.txt
Where <root>/packed/ holds them packed for the canvas that a config asks for, they are read from there (pack.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from jigclu.config import ConfigError, DataConfig
from jigclu.data.sources.base import SPLITS, Source, Split
from jigclu.data.sources.decoding import decode
from jigclu.data.sources.folder_index import Files, scan
from jigclu.data.sources.packed import PackedSource, open_pack
from jigclu.data.sources.subsets import IncompleteDatasetError, balanced, by_rule, listed, read_list

# HobbitLong/CMC's list, the one that the paper cites (protocols.md §2.2).
IMAGENET100_SHA256 = "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"
# google-research/simclr's label lists (protocols.md §2.4).
SIMCLR_SHA256 = {
    "1percent": "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    "10percent": "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
}
# Their lines whose file is one of Imagenette's train images, in their order, as <wnid>/<file>.
IMAGENETTE_SHA256 = {
    "1percent": "9a2dd83c425d6f6486a4c5001df1f07c21fa015803687b029025695912caf4ae",
    "10percent": "0ed45ca2af1661b367d674e7086c5e1d1f264ced5fc42e9946e49a02c221702b",
}
IMAGENET_MIN_TRAIN, IMAGENET_VAL = 732, 50  # ILSVRC2012: train classes hold 732 to 1300 images, val classes 50

_GET = "get ILSVRC2012 from image-net.org as imagenet1k/{train,val}/<wnid>/*.JPEG (val sorted by wnid)"
_ROOT = "then set JIGCLU_DATA to the folder around it"
_LISTS = "for subsets 1percent.txt and 10percent.txt of github.com/google-research/simclr (imagenet_subsets) in lists/"
HOW = {
    "imagenette": "get it with `python -m jigclu.data get imagenette`, or Imagenette v2 (github.com/fastai/imagenette) as "
    f"imagenette/{{train,val}}/<wnid>/*.JPEG, {_LISTS}, {_ROOT}",
    "imagenet1k": f"{_GET}, {_LISTS}, {_ROOT}",
    "imagenet100": f"{_GET} and imagenet100.txt of github.com/HobbitLong/CMC in lists/, {_ROOT}",
}


@dataclass(frozen=True)
class FolderSource(Source):
    """Image files below `folder`, by class and name."""

    folder: Path
    sizes: np.ndarray = field(repr=False)  # (n,) int64, bytes

    def pixels(self, index: int, longest: int) -> np.ndarray:
        return decode(self.folder / str(self.paths[index]), longest)

    def facts(self) -> Iterable[str]:
        return (f"{path} {size}" for path, size in zip(self.paths.tolist(), self.sizes.tolist(), strict=True))

    def take(self, chosen: np.ndarray) -> Self:
        return replace(super().take(chosen), sizes=self.sizes[chosen])


S = TypeVar("S", bound=FolderSource | PackedSource)


@dataclass(frozen=True)
class FolderCollection:
    """One folder a split, in it one folder a class, named by its wnid."""

    folder: str
    classes: int
    images: dict[str, int] | None = None  # of each split, where every class isn't held to ILSVRC2012's numbers
    class_list: str = ""  # below the root: only the classes named there
    list_sha256: str = ""
    subset_lists: str = ""  # below the root; none: subsets are drawn by rule
    subset_sha256: dict[str, str] = field(default_factory=dict)

    def open(self, data: DataConfig, split: Split, root: Path) -> Source:
        packed = open_pack(data, split, root)
        return self.from_files(data, split, root) if packed is None else self._part(packed, data, split, root)

    def from_files(self, data: DataConfig, split: Split, root: Path) -> FolderSource:
        """As `open`, of the folders themselves, whatever is packed."""
        try:
            whole = self._whole(split, root)
        except IncompleteDatasetError as error:
            raise _missing(data, error) from None
        return self._part(whole, data, split, root)

    def absent(self, root: Path) -> bool:
        """Neither split has a folder."""
        return not any((root / self.folder / split).exists() for split in SPLITS)

    def check(self, data: DataConfig, root: Path) -> None:
        for split in SPLITS:
            self.open(data, split, root)

    def verified(self, data: DataConfig, root: Path) -> str:
        lists = [self.class_list] if self.class_list else []
        lists += [self.subset_lists.format(data.subset)] if self.subset_lists and data.subset else []
        return "numbers of classes and images as they must be" + "".join(
            f", sha256 of {name} verified" for name in lists
        )

    def _part(self, source: S, data: DataConfig, split: Split, root: Path) -> S:
        try:
            if data.subset and split == "train":
                source = self._subset(source, data.subset, root)
        except IncompleteDatasetError as error:
            raise _missing(data, error) from None
        return balanced(source, data, split)

    def _subset(self, source: S, subset: str, root: Path) -> S:
        if not self.subset_lists:
            return by_rule(source, subset)
        lines = read_list(root / self.subset_lists.format(subset), self.subset_sha256[subset])
        return listed(source, [with_wnid(line) for line in lines], source.folder)

    def _whole(self, split: Split, root: Path) -> FolderSource:
        folder = root / self.folder / split
        if not folder.is_dir():
            raise IncompleteDatasetError(folder, "there is no such folder")
        wnids = read_list(root / self.class_list, self.list_sha256) if self.class_list else None
        classes = scan(folder, wnids)
        if missing := sorted(set(wnids or ()) - set(classes)):
            raise IncompleteDatasetError(
                folder, f"{len(missing)} of {len(wnids or ())} class folders are missing, the first is {missing[0]}"
            )
        self._count(folder, split, classes)
        return FolderSource(
            classes=list(classes),
            paths=np.array([f"{wnid}/{name}" for wnid, files in classes.items() for name, _ in files]),
            labels=np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in classes.values()]),
            folder=folder,
            sizes=np.array([size for files in classes.values() for _, size in files], dtype=np.int64),
        )

    def _count(self, folder: Path, split: Split, classes: dict[str, Files]) -> None:
        if len(classes) != self.classes:
            raise IncompleteDatasetError(folder, f"{len(classes)} class folders, not {self.classes}")
        for wnid, files in classes.items():
            if not files:
                raise IncompleteDatasetError(folder, f"class folder {wnid} is empty")
            if not self.images and split == "train" and len(files) < IMAGENET_MIN_TRAIN:
                raise IncompleteDatasetError(
                    folder, f"class {wnid} has {len(files)} images, not at least {IMAGENET_MIN_TRAIN}"
                )
            if not self.images and split == "val" and len(files) != IMAGENET_VAL:
                raise IncompleteDatasetError(folder, f"class {wnid} has {len(files)} images, not {IMAGENET_VAL}")
        found = sum(map(len, classes.values()))
        if self.images and found != self.images[split]:
            raise IncompleteDatasetError(folder, f"{found} images, not {self.images[split]}")


def _missing(data: DataConfig, error: IncompleteDatasetError) -> ConfigError:
    return ConfigError(f"data set {data.name}: looked in {error.where.absolute()}: {error}; {HOW[data.name]}")


def with_wnid(line: str) -> str:
    """SimCLR's lists name files alone, whose wnid stands before the underscore: n0123_4.JPEG -> n0123/n0123_4.JPEG."""
    return line if "/" in line else f"{line.partition('_')[0]}/{line}"
