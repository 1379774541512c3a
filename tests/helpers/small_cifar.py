"""A CIFAR of a few images in the real layout, with digests of its own: what a test may break."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np

from jigclu.data.sources.cifar import CIFAR10, SUMS

BATCHES = [*CIFAR10.train, *CIFAR10.test]


def small_cifar(root: Path, each: int = 20) -> Path:
    """<root>/cifar-10-batches-py of `each` images a batch: noise about a colour of their class. Returns the folder."""
    folder = root / CIFAR10.folder
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
    """SHA256SUMS of what lies there."""
    names = [*BATCHES, "batches.meta"]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))
