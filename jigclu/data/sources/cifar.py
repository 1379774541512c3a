"""CIFAR-10 and CIFAR-100 in the python pickle layout; the val split is the official test set.

<root>/cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}    <root>/cifar-100-python/{train,test,meta}
A pickle can be code. None is opened before its digest is verified (against SHA256SUMS if the folder has one: a part of
CIFAR states its own digests there; else against the official md5s), and nothing in it is called. No torch.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from jigclu.config import ConfigError, DataConfig, DatasetSpec
from jigclu.data.sources.base import Source, Split
from jigclu.data.sources.decoding import fit
from jigclu.data.sources.folder_index import SUMS, read_sums
from jigclu.data.sources.subsets import IncompleteDatasetError, balanced, by_rule


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


class _Plain(pickle.Unpickler):
    """Reads arrays, texts and numbers. A digest that comes with the files does not make them harmless."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) in ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def _load(path: Path) -> dict[str, Any]:
    try:
        values = _Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # whatever damaged or foreign bytes make the unpickler raise
        what = " ".join(str(error).split()) or type(error).__name__
        raise IncompleteDatasetError(path, f"it is not one of CIFAR's files ({what})") from None
    if not isinstance(values, dict):
        raise IncompleteDatasetError(path, f"it holds a {type(values).__name__}, not a dict")
    return values


def _names(path: Path, classes: int) -> list[str]:
    values = _load(path)
    names = values.get("fine_label_names", values.get("label_names"))
    if not isinstance(names, list) or len({*map(str, names)}) != classes or not all(isinstance(n, str) for n in names):
        raise IncompleteDatasetError(path, f"label_names must be {classes} different texts")
    return names


def _batch(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) uint8 and labels (n,) int64."""
    values = _load(path)
    pixels, labels = values.get("data"), values.get("fine_labels", values.get("labels"))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise IncompleteDatasetError(path, "data must be rows of 3072 numbers of type uint8")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise IncompleteDatasetError(path, f"labels must be a list of {len(pixels)} numbers, one per image")
    if wrong := [label for label in labels if type(label) is not int or not 0 <= label < classes]:
        raise IncompleteDatasetError(
            path, f"a label is {wrong[0]!r}, and must be a whole number from 0 to {classes - 1}"
        )
    return pixels, np.array(labels, dtype=np.int64)


class CifarCollection:
    """The collection of the data sets of layout `cifar`."""

    def __init__(self, spec: DatasetSpec):
        assert spec.cifar, spec.name
        self.spec, self.files = spec, spec.cifar

    def open(self, data: DataConfig, split: Split, root: Path) -> ArraySource:
        digests = self._digests(root)
        batches = [*self.files.train, *self.files.test]
        for one, other in itertools.combinations(batches, 2):
            if digests[one] == digests[other]:
                raise self._incomplete(root, f"{one} and {other} are the same file")
        try:
            source = self._read(split, root, digests)
        except IncompleteDatasetError as error:
            raise self._incomplete(root, f"{error.path.name}: {error}") from None
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
        try:
            sums = read_sums(folder / SUMS)
        except IncompleteDatasetError as error:
            raise self._incomplete(root, f"{error.path.name}: {error}") from None
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
        (names,) = (_names(folder / name, self.spec.classes) for name in self.files.meta)
        parts = [_batch(folder / name, len(names)) for name in files]
        images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return ArraySource(
            classes=names,
            paths=np.array([f"{split}/{i}" for i in range(len(images))]),
            labels=np.concatenate([labels for _, labels in parts]),
            images=np.ascontiguousarray(images),
            digests=tuple(f"{name} {digests[name]}" for name in [*files, *self.files.meta]),
        )

    def _incomplete(self, root: Path, what: str) -> ConfigError:
        folder = (root / self.spec.folder).absolute()
        return ConfigError(f"data set {self.spec.name}: looked in {folder}: {what}; {self.spec.how_to_get}")
