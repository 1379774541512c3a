"""Parts of a data set: SimCLR's label lists, the same shares drawn by rule, class-balanced samples of a given size."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TypeVar

import numpy as np

from jigclu.config import ConfigError, DataConfig
from jigclu.data.sources.base import Source, Split

SHARES = {"1percent": 0.01, "10percent": 0.1}
S = TypeVar("S", bound=Source)


class IncompleteDatasetError(Exception):
    """What is missing, and in which file or folder; the collection adds the data set's name and how to get it."""

    def __init__(self, path: Path, what: str):
        super().__init__(what)
        self.path = path


def wanted(data: DataConfig, split: Split) -> int | None:
    return data.train_images if split == "train" else data.val_images


def read_list(path: Path, sha256: str) -> list[str]:
    """The words of a list file with that digest. Raises IncompleteDatasetError: missing, another file, or no list of names."""
    try:
        text = path.read_bytes()
    except OSError:
        raise IncompleteDatasetError(path, "there is no such file") from None
    if hashlib.sha256(text).hexdigest() != sha256:
        raise IncompleteDatasetError(path, f"this is not the expected list (its sha256 is not {sha256[:12]}...)")
    try:
        names = text.decode("utf-8-sig").split()
    except UnicodeDecodeError:
        raise IncompleteDatasetError(path, "it is not UTF-8 text") from None
    if not names:
        raise IncompleteDatasetError(path, "it names nothing")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise IncompleteDatasetError(path, f"it names {twice[0]} twice")
    return names


def listed(source: S, paths: list[str], folder: Path) -> S:
    """Exactly the listed images, in the source's order. Raises IncompleteDatasetError (of `folder`) if any is missing."""
    positions = {path: position for position, path in enumerate(source.paths.tolist())}
    if missing := [path for path in paths if path not in positions]:
        raise IncompleteDatasetError(
            folder, f"{len(missing)} of {len(paths)} listed images are missing, the first is {missing[0]}"
        )
    part = source.take(np.array(sorted(positions[path] for path in paths)))
    if empty := [name for name, members in zip(part.classes, part.by_class(), strict=True) if not len(members)]:
        raise IncompleteDatasetError(folder, f"the list leaves {len(empty)} classes empty, the first is {empty[0]}")
    return part


def by_rule(source: S, subset: str) -> S:
    """The subset's share of every class, rounded, at least one image; for sets without a list (protocols.md §2.3)."""
    classes = source.by_class()
    return _first(source, classes, [max(1, round(SHARES[subset] * len(members))) for members in classes])


def balanced(source: S, data: DataConfig, split: Split) -> S:
    """`train_images` or `val_images` of the source; if that does not divide evenly, the first classes give one more.

    Raises ConfigError, naming the numbers, if a class has too few images.
    """
    count = wanted(data, split)
    if count is None:
        return source
    classes = source.by_class()
    share, rest = divmod(count, len(classes))
    counts = [share + (i < rest) for i in range(len(classes))]
    for name, members, needed in zip(source.classes, classes, counts, strict=True):
        if needed > len(members):
            chosen = " ".join(filter(None, (data.name, data.subset if split == "train" else None)))
            raise ConfigError(
                f"data.{split}_images={count}: {chosen} would need {needed} images of class {name}, which has "
                f"{len(members)} ({len(source.paths)} in all; leave {split}_images out to use them all)"
            )
    return _first(source, classes, counts)


def _first(source: S, classes: list[np.ndarray], counts: list[int]) -> S:
    """The first `counts` of each class's ranking, in the source's order: a larger part contains every smaller one."""
    chosen = [
        members if count >= len(members) else source.ranked(members)[:count]
        for members, count in zip(classes, counts, strict=True)
    ]
    return source.take(np.sort(np.concatenate(chosen)))
