"""A CIFAR-10 of a few images in the real layout, with its own digests, that a test may damage."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np

from jigclu.config.datasets import DATASETS, CifarFiles
from jigclu.data.sources.cifar import SUMS


def pickles(name: str) -> CifarFiles:
    """The files of `cifar10` or `cifar100`."""
    files = DATASETS[name].cifar
    assert files
    return files


BATCHES = [*pickles("cifar10").train, *pickles("cifar10").test]


def small_cifar(root: Path, each: int = 20) -> Path:
    """<root>/cifar-10-batches-py with `each` images per batch: noise around a colour per class. Returns the folder."""
    folder = root / DATASETS["cifar10"].folder
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    colours = noise.integers(40, 216, (10, 3, 1))
    for name in BATCHES:
        labels = [i % 10 for i in range(each)]
        pixels = colours[labels] + noise.integers(-40, 40, (each, 3, 1024))
        values = {"data": pixels.astype(np.uint8).reshape(each, 3072), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(values))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write SHA256SUMS of the folder's files."""
    names = [*BATCHES, "batches.meta"]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))
