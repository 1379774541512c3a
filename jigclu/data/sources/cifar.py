"""CIFAR-10 and CIFAR-100 in the python pickle layout, read by torchvision; the val split is the official test set.

<root>/cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}    <root>/cifar-100-python/{train,test,meta}
A pickle is code, so none is opened before its digest was checked: against SHA256SUMS where one lies in the folder (a set that
is somebody's part of CIFAR states its own digests there), else against the official md5s. No torch until images are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from jigclu.config import ConfigError, DataConfig
from jigclu.data.sources.base import Source, Split
from jigclu.data.sources.decoding import fit
from jigclu.data.sources.subsets import balanced, by_rule

SUMS = "SHA256SUMS"
OFFICIAL: dict[str, int] = {"train": 50_000, "val": 10_000}


@dataclass(frozen=True)
class ArraySource(Source):
    """Images in memory, (n, h, w, 3) uint8; `paths` are <split>/<index in the files>."""

    images: np.ndarray = field(repr=False)
    digests: tuple[str, ...]  # `<name> <sha256>` of every file that was read

    def pixels(self, index: int, longest: int) -> np.ndarray:
        image = self.images[index]
        return image.transpose(2, 0, 1) if max(image.shape) <= longest else fit(Image.fromarray(image), longest)

    def extents(self, canvas: int) -> np.ndarray | None:
        square = self.images.shape[1:3] == (canvas, canvas)
        return np.full((len(self.images), 2), canvas, dtype=np.int64) if square else None

    def copy_into(self, out: np.ndarray, indices: np.ndarray) -> None:
        np.copyto(out, self.images[indices].transpose(0, 3, 1, 2))

    def facts(self) -> Iterable[str]:
        return [*self.digests, *self.paths.tolist()]

    def take(self, chosen: np.ndarray) -> Self:
        return replace(super().take(chosen), images=self.images[chosen])


@dataclass(frozen=True)
class CifarCollection:
    """`train`, `test`, `meta`: file names with their official md5s, those that torchvision's classes state."""

    reader: str  # the class in torchvision.datasets
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]

    def open(self, data: DataConfig, split: Split, root: Path) -> ArraySource:
        digests = self._digests(data, root)
        read, official = self._read(split, root), not (root / self.folder / SUMS).exists()
        if official and len(read.data) != OFFICIAL[split]:
            raise self._broken(data, root, f"{len(read.data)} {split} images, not {OFFICIAL[split]}")
        used = [*(self.train if split == "train" else self.test), *self.meta]
        source = ArraySource(
            classes=list(read.classes),
            paths=np.array([f"{split}/{i}" for i in range(len(read.data))]),
            labels=np.array(read.targets, dtype=np.int64),
            images=np.ascontiguousarray(read.data),
            digests=tuple(f"{name} {digests[name]}" for name in used),
        )
        if data.subset and split == "train":
            source = by_rule(source, data.subset)
        return balanced(source, data, split)

    def check(self, data: DataConfig, root: Path) -> None:
        self._digests(data, root)

    def verified(self, data: DataConfig, root: Path) -> str:
        return f"files verified against {SUMS if (root / self.folder / SUMS).exists() else 'the official md5s'}"

    def _digests(self, data: DataConfig, root: Path) -> dict[str, str]:
        """sha256 of every data file, all verified. Raises ConfigError, one line."""
        folder = root / self.folder
        needed = {**self.train, **self.test, **self.meta}
        if not folder.is_dir():
            raise self._broken(data, root, "there is no such folder")
        sums = _sums(folder / SUMS)
        if sums is not None and (unlisted := sorted(set(needed) - set(sums))):
            raise self._broken(data, root, f"{SUMS} says nothing of {unlisted[0]}")
        found = {}
        for name in sums or needed:
            try:
                content = (folder / name).read_bytes()
            except OSError:
                raise self._broken(data, root, f"there is no file {name}") from None
            found[name] = hashlib.sha256(content).hexdigest()
            if sums is not None and found[name] != sums[name]:
                raise self._broken(data, root, f"{name} is altered (its sha256 is not the one in {SUMS})")
            if sums is None and hashlib.md5(content, usedforsecurity=False).hexdigest() != needed[name]:
                raise self._broken(data, root, f"{name} is altered (its md5 is not the official one)")
        return found

    def _read(self, split: Split, root: Path) -> Any:
        """torchvision's data set, for its `data`, `targets` and `classes`. The files must have been verified."""
        from torchvision import datasets

        base = getattr(datasets, self.reader)
        # Checked already, and where the folder has digests of its own, torchvision's would refuse it: no md5, no second check.
        unchecked = {
            "train_list": [[name, None] for name in self.train],
            "test_list": [[name, None] for name in self.test],
            "meta": {**base.meta, "md5": None},
        }
        return type(self.reader, (base,), unchecked)(str(root), train=split == "train")

    def _broken(self, data: DataConfig, root: Path, what: str) -> ConfigError:
        return ConfigError(
            f"data set {data.name}: looked in {(root / self.folder).absolute()}: {what}; get it with "
            f"`python -m jigclu.data get {data.name}`, or set JIGCLU_DATA to the folder around {self.folder}"
        )


def _sums(path: Path) -> dict[str, str] | None:
    """{file name: sha256} of a SHA256SUMS file; None where there is none."""
    if not path.exists():
        return None
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    return {line[1].strip().removeprefix("*"): line[0].lower() for line in lines if len(line) == 2}


CIFAR10 = CifarCollection(
    reader="CIFAR10",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
)
CIFAR100 = CifarCollection(
    reader="CIFAR100",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
)
