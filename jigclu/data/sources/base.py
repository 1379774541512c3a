"""One split of a data set: names, labels and pixels. Folders of images, arrays and drawn scenes are three kinds of it."""

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
MOST_UNREADABLE = 0.001  # of a data set; past it the disk is the problem, not a file


def data_root(root: Path | None = None) -> Path:
    return Path(root if root is not None else os.environ.get("JIGCLU_DATA") or "data")


@dataclass(frozen=True)
class Source(ABC):
    """n images in the order in which they are indexed. `classes` stays the full list, whatever part is taken."""

    classes: list[str]
    paths: np.ndarray  # (n,) str: an array, not a list, so that forked workers share its pages
    labels: np.ndarray  # (n,) int64, into classes

    @abstractmethod
    def pixels(self, index: int, longest: int) -> np.ndarray:
        """(3, h, w) uint8 RGB, max(h, w) <= longest. Raises whatever the reader does where the image is broken."""

    def extents(self, canvas: int) -> np.ndarray | None:
        """(n, 2) int64, [height, width] of every image, (0, 0) of an unreadable one, where all lie stored as canvases of that side.

        Then reading is copying, by `copy_into`. None: they don't, `pixels` decodes them.
        """
        return None

    def copy_into(self, out: np.ndarray, indices: np.ndarray) -> None:
        """The stored canvases at the (k,) int64 `indices` into `out` (k, 3, S, S) uint8, where `extents(S)` is not None."""
        raise TypeError(f"{type(self).__name__} holds no canvases: extents() is None")

    @abstractmethod
    def facts(self) -> Iterable[str]:
        """Lines of text that differ where the images' bytes do."""

    def take(self, chosen: np.ndarray) -> Self:
        """The images at the (k,) int indices `chosen`, in that order."""
        return replace(self, paths=self.paths[chosen], labels=self.labels[chosen])

    def ranked(self, members: np.ndarray) -> np.ndarray:
        """The indices `members` as a smaller part takes them: by the hash of their names, so that no order of files matters."""
        names = [str(path).rpartition("/")[2].encode() for path in self.paths[members]]
        return members[sorted(range(len(members)), key=lambda i: hashlib.sha256(names[i]).digest())]

    def by_class(self) -> list[np.ndarray]:
        """For every class the indices of its images, ascending."""
        ends = np.cumsum(np.bincount(self.labels, minlength=len(self.classes)))[:-1]
        return np.split(np.argsort(self.labels, kind="stable"), ends)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex of sha256 over `facts`."""
        return hashlib.sha256("\n".join(self.facts()).encode()).hexdigest()[:16]


class Collection(Protocol):
    """A data set by name: where it lies, whether it is whole, what a config takes of it."""

    def open(self, data: DataConfig, split: Split, root: Path) -> Source:
        """The part of the split that the config asks for. Raises ConfigError (one line) where the set isn't whole."""

    def check(self, data: DataConfig, root: Path) -> None:
        """Raises ConfigError (one line: where it looked, how to get it) unless both splits are whole. Needs no torch."""

    def verified(self, data: DataConfig, root: Path) -> str:
        """What a set that `check` passed was held against, in words."""
