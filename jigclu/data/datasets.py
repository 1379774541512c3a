"""Data sets by name, as uint8 canvases: decoded once on the CPU, everything random happens on the device afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from jigclu.config import DataConfig
from jigclu.data.catalog import Catalogue, Split, catalogue
from jigclu.data.scenes import scene


class Sample(NamedTuple):
    """One image in the top-left corner of a square canvas of side S, the rest zero."""

    canvas: torch.Tensor  # (3, S, S) uint8, RGB
    height: int  # of the placed image, in pixels
    width: int
    label: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    readable: bool  # False: the file is broken, the canvas is all zero, height = width = S


def open_dataset(data: DataConfig, split: Split, root: Path | None = None) -> CanvasDataset:
    """One split of the data set below `root` (default: JIGCLU_DATA, else data/). ConfigError where it isn't whole."""
    return CanvasDataset(catalogue(data, split, root), split, data.canvas)


class CanvasDataset(Dataset[Sample]):
    """Images of one split on canvases of `canvas` pixels. `paths` (n,) are relative names, `labels` (n,) int64."""

    def __init__(self, files: Catalogue, split: Split, canvas: int):
        self.split = split
        self.canvas = canvas
        self.folder = files.folder
        self.classes = files.classes
        self.labels = files.labels
        self.paths = files.paths
        self.fingerprint = files.fingerprint

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        canvas = torch.zeros(3, self.canvas, self.canvas, dtype=torch.uint8)
        label = int(self.labels[index])
        pixels = self._pixels(index)
        if pixels is None:
            return Sample(canvas, self.canvas, self.canvas, label, index, False)
        height, width = pixels.shape[1:]
        canvas[:, :height, :width] = torch.from_numpy(pixels)
        return Sample(canvas, height, width, label, index, True)

    def _pixels(self, index: int) -> np.ndarray | None:
        if self.folder is None:
            return scene(index, self.split, self.canvas)[0]
        try:
            return decode(self.folder / self.paths[index], self.canvas)
        except Exception:
            return None


def decode(path: Path, longest: int) -> np.ndarray:
    """(3, h, w) uint8 RGB, scaled down (never up) with PIL's antialiased bilinear so that max(h, w) <= longest.

    A JPEG much larger than that is decoded at 1/2, 1/4 or 1/8 (`draft`), still no smaller than the result.
    EXIF orientation is ignored, as torchvision's ImageFolder and the released code do.
    """
    with Image.open(path) as image:
        ratio = min(1.0, longest / max(image.size))
        size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        image.draft(None, size)
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=None)
        return np.array(small).transpose(2, 0, 1)
