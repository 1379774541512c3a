"""Data sets that are folders of images: Imagenette, ImageNet-1k, and ImageNet-100, which is 100 folders of it.

<root>/{imagenette,imagenette2}/{train,val}/<wnid>/*.JPEG    <root>/imagenet1k/{train,val}/<wnid>/*
<root>/lists/{imagenet100,1percent,10percent}.txt    <root>/{imagenette,imagenette2}/splits/simclr_{1,10}percent.txt
If <root>/packed/ has a pack for the config's canvas, images are read from there (packed.py).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from PIL import Image

from jigclu.config import ConfigError, DataConfig, DatasetSpec, dataset_spec
from jigclu.data.sources.base import SPLITS, Source, Split, file_lines
from jigclu.data.sources.decoding import decode
from jigclu.data.sources.folder_index import (
    COMPARED,
    Files,
    class_folders,
    is_folder,
    require_folder,
    require_separate,
    require_two_folders,
    same_bytes,
    scan,
)
from jigclu.data.sources.packed import PackedSource, open_pack, pack_command
from jigclu.data.sources.subsets import IncompleteDatasetError, balanced, by_rule, listed, read_list


@dataclass(frozen=True)
class FolderSource(Source):
    """Image files below `folder`, by class and name."""

    folder: Path
    sizes: np.ndarray = field(repr=False)  # (n,) int64, bytes

    def pixels(self, index: int, longest: int) -> np.ndarray:
        return decode(self.folder / str(self.paths[index]), longest, int(self.sizes[index]) or None)

    def facts(self) -> Iterable[str]:
        return file_lines(self.paths, self.sizes)

    def take(self, chosen: np.ndarray) -> Self:
        return replace(super().take(chosen), sizes=self.sizes[chosen])


S = TypeVar("S", bound=FolderSource | PackedSource)


@dataclass(frozen=True)
class FolderCollection:
    """The collection of data sets of layout `folders`: one folder per split, in it one per class, named by its wnid."""

    spec: DatasetSpec

    def open(self, data: DataConfig, split: Split, root: Path, thorough: bool = True) -> Source:
        packed = open_pack(data, split, root, thorough)
        if packed is None:
            return self.from_files(data, split, root)
        try:
            members = packed.by_class()
            self._count(packed.folder, split, dict(zip(packed.classes, map(len, members), strict=True)))
        except IncompleteDatasetError as error:
            raise ConfigError(
                f"data set {data.name}: the pack {packed.folder} does not fit the data set: {split}: {error}; make "
                f"it again with `{pack_command(data, root)} --force`"
            ) from None
        return self._part(packed, data, split, root)

    def fingerprint(self, data: DataConfig, split: Split, root: Path) -> str:
        return self.open(data, split, root, thorough=False).fingerprint

    def from_files(self, data: DataConfig, split: Split, root: Path, fresh: bool = False) -> FolderSource:
        """As `open`, but always from the folders, even if there is a pack. `fresh`: no listing comes from the cache."""
        try:
            whole = self._whole(split, root, fresh)
        except IncompleteDatasetError as error:
            raise self._incomplete(error) from None
        return self._part(whole, data, split, root)

    def absent(self, root: Path) -> bool:
        """Whether neither split has a folder."""
        return not any((root / self.spec.folder / split).exists() for split in SPLITS)

    def check(self, data: DataConfig, root: Path) -> None:
        train, val = (self.open(data, split, root) for split in SPLITS)
        if isinstance(train, FolderSource) and isinstance(val, FolderSource):
            self._compare_images(train, val)

    def _compare_images(self, train: FolderSource, val: FolderSource) -> None:
        """Raises ConfigError if val is measured on what was learned: the same names, sizes and, of a few, bytes."""
        one, other = (dict(zip(source.paths.tolist(), source.sizes.tolist(), strict=True)) for source in (train, val))
        try:
            require_separate(train.folder, one, val.folder, other)
        except IncompleteDatasetError as error:
            raise self._incomplete(error) from None

    def verified(self, data: DataConfig, root: Path) -> str:
        lists = [self.spec.class_list, self.spec.subsets.get(data.subset or "")]
        verified = "".join(f", sha256 of {file.path} verified" for file in lists if file)
        return f"the expected numbers of classes and images{verified}"

    def _part(self, source: S, data: DataConfig, split: Split, root: Path) -> S:
        try:
            if data.subset and split == "train":
                source = self._subset(source, data.subset, root)
        except IncompleteDatasetError as error:
            raise self._incomplete(error) from None
        return balanced(source, data, split)

    def _subset(self, source: S, subset: str, root: Path) -> S:
        if not (file := self.spec.subsets.get(subset)):
            return by_rule(source, subset)
        lines = read_list(root / file.path, file.sha256)
        return listed(source, [with_wnid(line) for line in lines], source.folder)

    def _whole(self, split: Split, root: Path, fresh: bool) -> FolderSource:
        folder, list_ = root / self.spec.folder / split, self.spec.class_list
        require_folder(folder)
        require_two_folders(*(root / self.spec.folder / name for name in SPLITS))
        wnids = read_list(root / list_.path, list_.sha256) if list_ else None
        if wnids is None:
            self._compare_splits(root)
        classes = scan(folder, wnids, fresh)
        if missing := sorted(set(wnids or ()) - set(classes)):
            raise IncompleteDatasetError(
                folder, f"{len(missing)} of {len(wnids or ())} class folders are missing, the first is {missing[0]}"
            )
        self._count(folder, split, {wnid: len(files) for wnid, files in classes.items()})
        _require_different(folder, classes)
        self._require_form(folder, classes)
        return FolderSource(
            classes=list(classes),
            paths=np.array([f"{wnid}/{name}" for wnid, files in classes.items() for name, _ in files]),
            labels=np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in classes.values()]),
            folder=folder.resolve(),  # a data root that is a link may point elsewhere before the job ends
            sizes=np.array([size for files in classes.values() for _, size in files], dtype=np.int64),
        )

    def _compare_splits(self, root: Path) -> None:
        """Labels are positions in the sorted class folders, so both splits must have the same ones."""
        folders = [root / self.spec.folder / split for split in SPLITS]
        if not all(map(is_folder, folders)):
            return  # `check` needs both; a pretraining reads only train
        names = [set(class_folders(folder)) for folder in folders]
        only = [sorted(names[0] - names[1]), sorted(names[1] - names[0])]
        if any(only):
            sides = [f"only {split} has {_some(extra)}" for split, extra in zip(SPLITS, only, strict=True) if extra]
            raise IncompleteDatasetError(
                folders[0].parent, f"train and val have different class folders: {', '.join(sides)}"
            )

    def _count(self, folder: Path, split: Split, classes: dict[str, int]) -> None:
        """Raises IncompleteDatasetError unless the classes have as many images as the data set's record says."""
        if len(classes) != self.spec.classes:
            raise IncompleteDatasetError(
                folder, f"{len(classes)} class folders, not {self.spec.classes}{_odd(classes)}"
            )
        train, val = self.spec.per_class or (0, 0)
        for wnid, count in classes.items():
            if not count:
                raise IncompleteDatasetError(folder, f"class folder {wnid} is empty")
            if self.spec.per_class and split == "train" and count < train:
                raise IncompleteDatasetError(folder, f"class {wnid} has {count} images, not at least {train}")
            if self.spec.per_class and split == "val" and count != val:
                raise IncompleteDatasetError(folder, f"class {wnid} has {count} images, not {val}")
        found = sum(classes.values())
        if not self.spec.per_class and found != self.spec.images[split]:
            raise IncompleteDatasetError(folder, f"{found} images, not {self.spec.images[split]}")

    def _require_form(self, folder: Path, classes: dict[str, Files]) -> None:
        """Two data sets that have the same files in two sizes are known apart by the size of a few images."""
        if not self.spec.twin:
            return
        twin = dataset_spec(self.spec.twin)
        sizes = _sizes([folder / wnid / files[0][0] for wnid, files in classes.items()][:COMPARED])
        here = sizes[0] if len(set(sizes)) == 1 else (0, 0)
        if sizes and self.spec.square and here != (self.spec.square,) * 2:
            form = f"its images are not all {self.spec.square} x {self.spec.square} pixels"
        elif twin.square and here == (twin.square,) * 2:
            form = f"its images are all {twin.square} x {twin.square} pixels"
        else:
            return
        move = f"move it to {folder.parent.parent / twin.folder}"
        raise IncompleteDatasetError(folder, f"{form}, so it is data set {twin.name}: {move} and use that name")

    def _incomplete(self, error: IncompleteDatasetError) -> ConfigError:
        where = f"looked in {error.path.absolute()}"
        return ConfigError(f"data set {self.spec.name}: {where}: {error}; {self.spec.how_to_get}")


def _sizes(paths: Iterable[Path]) -> list[tuple[int, int]]:
    """(width, height) of the images that can be read."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError, ValueError), Image.open(path) as image:
            found.append(image.size)
    return found


def _require_different(folder: Path, classes: dict[str, Files]) -> None:
    """Two classes with the same images would give each image two labels."""
    seen: dict[tuple[tuple[str, int], ...], str] = {}
    for wnid, files in classes.items():
        other = seen.setdefault(tuple(files), wnid)
        first = [(folder / other / name, folder / wnid / name) for name, _ in files[:COMPARED]]
        if other != wnid and any(size for _, size in files) and all(same_bytes(*pair) for pair in first):
            raise IncompleteDatasetError(folder, f"class folders {other} and {wnid} have the same images")


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _odd(classes: dict[str, int]) -> str:
    """The folders that are likely no classes: those without images, or those not named like most others, by a wnid."""
    if empty := [name for name, count in classes.items() if not count]:
        return f" (without images: {_some(empty)})"
    odd = [name for name in classes if not re.fullmatch(r"n\d{8}", name)]
    return f" (not named like a class: {_some(odd)})" if 0 < len(odd) < len(classes) / 2 else ""


def with_wnid(line: str) -> str:
    """SimCLR's lists name only files; the wnid precedes the underscore: n0123_4.JPEG -> n0123/n0123_4.JPEG."""
    return line if "/" in line else f"{line.partition('_')[0]}/{line}"
