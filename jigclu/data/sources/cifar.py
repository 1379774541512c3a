"""CIFAR-10 and CIFAR-100 in the python pickle layout; the val split is the official test set.

<root>/cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}    <root>/cifar-100-python/{train,test,meta}
A pickle is code, so none is opened before its digest is verified: against SHA256SUMS if the folder has one (a part of
CIFAR states its own digests there), else against the official md5s. No torch.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from jigclu.config import ConfigError, DataConfig, DatasetSpec
from jigclu.data.sources.base import Source, Split
from jigclu.data.sources.decoding import fit
from jigclu.data.sources.folder_index import SUMS, read_sums
from jigclu.data.sources.subsets import balanced, by_rule


@dataclass(frozen=True)
class ArraySource(Source):
    """Images in memory, (n, h, w, 3) uint8; `paths` are <split>/<index in the files>."""

    images: np.ndarray = field(repr=False)
    digests: tuple[str, ...]  # `<name> <sha256>` of every file read

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


class CifarCollection:
    """The collection of the data sets of layout `cifar`."""

    def __init__(self, spec: DatasetSpec):
        assert spec.cifar, spec.name
        self.spec, self.files = spec, spec.cifar

    def open(self, data: DataConfig, split: Split, root: Path) -> ArraySource:
        source = self._read(split, root, self._digests(root))
        official = not (root / self.spec.folder / SUMS).exists()
        if official and len(source.paths) != self.spec.images[split]:
            raise self._incomplete(root, f"{len(source.paths)} {split} images, not {self.spec.images[split]}")
        if data.subset and split == "train":
            source = by_rule(source, data.subset)
        return balanced(source, data, split)

    def fingerprint(self, data: DataConfig, split: Split, root: Path) -> str:
        return self.open(data, split, root).fingerprint

    def check(self, data: DataConfig, root: Path) -> None:
        self._digests(root)

    def verified(self, data: DataConfig, root: Path) -> str:
        return f"files verified against {SUMS if (root / self.spec.folder / SUMS).exists() else 'the official md5s'}"

    def _digests(self, root: Path) -> dict[str, str]:
        """sha256 of every data file, all verified. Raises ConfigError, one line."""
        folder = root / self.spec.folder
        needed = {**self.files.train, **self.files.test, **self.files.meta}
        if not folder.is_dir():
            raise self._incomplete(root, "there is no such folder")
        sums = read_sums(folder / SUMS)
        if sums is not None and (unlisted := sorted(set(needed) - set(sums))):
            raise self._incomplete(root, f"{SUMS} does not list {unlisted[0]}")
        found = {}
        for name in sums or needed:
            try:
                content = (folder / name).read_bytes()
            except OSError:
                raise self._incomplete(root, f"there is no file {name}") from None
            found[name] = hashlib.sha256(content).hexdigest()
            if sums is not None and found[name] != sums[name]:
                raise self._incomplete(root, f"{name} is altered (its sha256 is not the one in {SUMS})")
            if sums is None and hashlib.md5(content, usedforsecurity=False).hexdigest() != needed[name]:
                raise self._incomplete(root, f"{name} is altered (its md5 is not the official one)")
        return found

    def _read(self, split: Split, root: Path, digests: dict[str, str]) -> ArraySource:
        """The whole split. The files must have been verified: a pickle is code."""
        folder, files = root / self.spec.folder, self.files.train if split == "train" else self.files.test
        parts = [pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in files]
        (meta,) = (pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in self.files.meta)
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return ArraySource(
            classes=list(meta["fine_label_names" if "fine_label_names" in meta else "label_names"]),
            paths=np.array([f"{split}/{i}" for i in range(len(images))]),
            labels=np.concatenate(
                [part["fine_labels" if "fine_labels" in part else "labels"] for part in parts], dtype=np.int64
            ),
            images=np.ascontiguousarray(images),
            digests=tuple(f"{name} {digests[name]}" for name in [*files, *self.files.meta]),
        )

    def _incomplete(self, root: Path, what: str) -> ConfigError:
        folder = (root / self.spec.folder).absolute()
        return ConfigError(f"data set {self.spec.name}: looked in {folder}: {what}; {self.spec.how_to_get}")
