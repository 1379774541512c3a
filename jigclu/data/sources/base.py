"""The interface of a data source: one split of a data set as names, labels and pixels."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np

from jigclu.config import DataConfig

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
MOST_UNREADABLE = 0.001  # share of a data set; above it the disk is the problem, not a file


def data_root(root: Path | None = None) -> Path:
    return Path(root if root is not None else os.environ.get("JIGCLU_DATA") or "data")


@dataclass(frozen=True)
class Source(ABC):
    """n images in the order of their indices. `classes` is the full list, whichever part of the images is taken."""

    classes: list[str]
    paths: np.ndarray  # (n,) str; an array, not a list, so that forked workers share its memory pages
    labels: np.ndarray  # (n,) int64, into classes

    @abstractmethod
    def pixels(self, index: int, longest: int) -> np.ndarray:
        """(3, h, w) uint8 RGB, max(h, w) <= longest. A broken image raises whatever its decoder raises."""

    def extents(self, canvas: int) -> np.ndarray | None:
        """(n, 2) int64 [height, width] of every image, (0, 0) if unreadable, when all are stored as canvases of that side.

        They are then read by `copy_into`. None: they are not stored so, and `pixels` decodes them.
        """
        return None

    def copy_into(self, out: np.ndarray, indices: np.ndarray) -> None:
        """Copy the canvases at the (k,) int64 `indices` to `out` (k, 3, S, S) uint8. Needs `extents(S)`."""
        raise TypeError(f"{type(self).__name__} stores no canvases: extents() is None")

    @abstractmethod
    def facts(self) -> Iterable[str]:
        """Lines of text that change when the bytes of the images change."""

    def take(self, chosen: np.ndarray) -> Self:
        """The images at the (k,) int indices `chosen`, in that order."""
        return replace(self, paths=self.paths[chosen], labels=self.labels[chosen])

    def ranked(self, members: np.ndarray) -> np.ndarray:
        """The indices `members` in the order in which smaller parts take them: by the hash of the names."""
        names = [str(path).rpartition("/")[2].encode() for path in self.paths[members]]
        return members[sorted(range(len(members)), key=lambda i: hashlib.sha256(names[i]).digest())]

    def by_class(self) -> list[np.ndarray]:
        """For every class, the indices of its images in ascending order."""
        ends = np.cumsum(np.bincount(self.labels, minlength=len(self.classes)))[:-1]
        return np.split(np.argsort(self.labels, kind="stable"), ends)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of `facts()`."""
        return fingerprint_of(self.facts())


def file_lines(paths: np.ndarray, sizes: np.ndarray) -> Iterable[str]:
    """`<path> <bytes>` of every file, from (n,) names and (n,) int64 sizes."""
    return (f"{path} {size}" for path, size in zip(paths.tolist(), sizes.tolist(), strict=True))


def fingerprint_of(lines: Iterable[str]) -> str:
    """The fingerprint of lines of text: the first 16 hex digits of their sha256."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class Collection(Protocol):
    """A data set by name: where it is, whether it is complete, and the part that a config takes."""

    def open(self, data: DataConfig, split: Split, root: Path) -> Source:
        """The part of the split that the config selects. Raises ConfigError (one line) if the set is incomplete."""

    def fingerprint(self, data: DataConfig, split: Split, root: Path) -> str:
        """Of the source that `open` returns, without reading or verifying any large file that was verified before."""

    def check(self, data: DataConfig, root: Path) -> None:
        """Raises ConfigError (one line: where it looked, how to get it) unless both splits are complete. No torch."""

    def verified(self, data: DataConfig, root: Path) -> str:
        """What a set that `check` passed was checked against, in words."""
