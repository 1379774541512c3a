"""Data sets by name, as uint8 canvases: decoded once on the CPU, everything random happens on the device afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from jigclu.config import DataConfig
from jigclu.data.catalog import Source, Split, catalogue


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
    return CanvasDataset(catalogue(data, split, root), data.canvas)


class CanvasDataset(Dataset[Sample]):
    """A source's images on canvases of `canvas` pixels. `paths` (n,) are relative names, `labels` (n,) int64."""

    def __init__(self, source: Source, canvas: int):
        self.source = source
        self.canvas = canvas
        self.classes = source.classes
        self.labels = source.labels
        self.paths = source.paths
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        canvas = torch.zeros(3, self.canvas, self.canvas, dtype=torch.uint8)
        label = int(self.labels[index])
        try:
            pixels = self.source.pixels(index, self.canvas)
        except Exception:  # whatever a decoder raises on a broken file; the loader counts and steps over it
            return Sample(canvas, self.canvas, self.canvas, label, index, False)
        height, width = pixels.shape[1:]
        canvas[:, :height, :width] = torch.from_numpy(pixels)
        return Sample(canvas, height, width, label, index, True)
