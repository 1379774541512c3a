"""Small folder data sets to pack, and ways to damage a pack: shared by the tests of reading and of writing packs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytest import MonkeyPatch

from jigclu.config import DATASETS, DataConfig, DatasetSpec
from jigclu.data import pack_writer
from jigclu.data.canvases import CanvasDataset
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.data.sources import packed as reader
from jigclu.data.sources.base import Split

REAL = DataConfig(name="imagenette", canvas=64)
TINY = DataConfig(name="imagenette", canvas=24)
TINY_JPEG = DataConfig(name="imagenette", canvas=24, quality=80)
COUNTS = {"train": 40, "val": 20}


def small_spec(counts: dict[str, int]) -> DatasetSpec:
    """Imagenette's record with these numbers of images; subsets are drawn by rule."""
    return replace(DATASETS["imagenette"], images=counts, subsets={}, square=0, twin="")


def register(monkeypatch: MonkeyPatch, counts: dict[str, int]) -> None:
    monkeypatch.setitem(DATASETS, "imagenette", small_spec(counts))


def folders(root: Path, counts: dict[str, int]) -> Path:
    noise = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(count):
            path = root / "imagenette" / split / f"n{i % 10}" / f"{i:04}.{'png' if i % 7 == 3 else 'JPEG'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = noise.integers(6, 60, 2)
            Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return root


def from_files(data: DataConfig, split: Split, root: Path) -> CanvasDataset:
    return CanvasDataset(pack_writer.collection_of(data).from_files(data, split, root), data.canvas)


def packed(data: DataConfig, root: Path, workers: int = 0) -> Path:
    pack_writer.pack(data, root, workers)
    return reader.folder_of(data, root)


def visible(root: Path) -> list[str]:
    """What is in packed/, except for the locks, which stay."""
    return sorted(name for name in os.listdir(root / "packed") if not name.endswith(".lock"))


def flip(path: Path, position: int = -100) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def read(
    data: CanvasDataset, substitute: bool = True, workers: int = 0, device: torch.device | None = None, size: int = 16
) -> list[Batch]:
    """All images in reverse order, in batches."""
    order = list(range(len(data)))[::-1]
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return list(batches(data, groups, workers, Unreadable(), substitute, device))


def same(some: list[Batch], others: list[Batch]) -> bool:
    pairs = [pair for one, other in zip(some, others, strict=True) for pair in zip(one, other, strict=True)]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
