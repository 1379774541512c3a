"""Data sets as uint8 canvases: decoded once on the CPU; everything random happens later, on the device."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import Dataset

from jigclu.config import ConfigError, DataConfig
from jigclu.data.catalog import Source, Split, catalogue

RESIDENT_SHARE = 0.25  # of a GPU's free memory, for the canvases of all data sets of one job
_CHUNK = 1 << 26  # bytes copied to the device at a time


class Sample(NamedTuple):
    """One image in the top-left corner of a square canvas of side S, the rest zero."""

    canvas: torch.Tensor  # (3, S, S) uint8, RGB
    height: int  # of the placed image, in pixels
    width: int
    label: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    readable: bool  # False: the file is broken, the canvas is all zero, height = width = S


def open_dataset(data: DataConfig, split: Split, root: Path | None = None, smallest: int = 1) -> CanvasDataset:
    """One split of the data set below `root` (default: JIGCLU_DATA, else data/). Raises ConfigError if incomplete.

    `smallest`: see CanvasDataset.
    """
    return CanvasDataset(catalogue(data, split, root), data.canvas, smallest)


class CanvasDataset(Dataset[Sample]):
    """A source's images on canvases of `canvas` pixels. `paths` (n,) are relative names, `labels` (n,) int64.

    `extents`: (n, 2) int64 [height, width], (0, 0) for an unreadable image, if the source stores canvases of that side,
    which are then only copied; None: images are decoded. Images with a side of fewer than `smallest` pixels on the canvas
    count as unreadable: a method that splits images into patches cannot use them.
    """

    def __init__(self, source: Source, canvas: int, smallest: int = 1):
        self.source = source
        self.canvas = canvas
        self.smallest = smallest
        self.classes = source.classes
        self.labels = source.labels
        self.paths = source.paths
        self.fingerprint = source.fingerprint
        self.extents = source.extents(canvas)
        if self.extents is not None and smallest > 1:
            self.extents = self.extents * (self.extents.min(axis=1, keepdims=True) >= smallest)
        self._resident: dict[torch.device, torch.Tensor | None] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        canvas = torch.zeros(3, self.canvas, self.canvas, dtype=torch.uint8)
        label = int(self.labels[index])
        try:
            pixels = self._pixels(index)
        except ConfigError:  # not a single broken file: the pack was replaced
            raise
        except Exception:  # whatever a decoder raises on a broken file; the loader counts and skips it
            return Sample(canvas, self.canvas, self.canvas, label, index, False)
        height, width = pixels.shape[1:]
        canvas[:, :height, :width] = torch.from_numpy(pixels)
        return Sample(canvas, height, width, label, index, True)

    def _pixels(self, index: int) -> np.ndarray:
        pixels = self.source.pixels(index, self.canvas)
        if min(pixels.shape[1:]) < self.smallest:
            height, width = pixels.shape[1:]
            raise ValueError(f"{width} x {height} pixels; at least {self.smallest} on each side are needed")
        return pixels

    def fault(self, index: int) -> str:
        """Why the image cannot be read, in one line; "" if it can."""
        try:
            self._pixels(index)
        except ConfigError:
            raise
        except Exception as error:
            return " ".join(str(error).split()) or type(error).__name__
        return ""

    def canvases(self, indices: np.ndarray, pin: bool = False) -> torch.Tensor:
        """Copies of the canvases at the (k,) int64 indices, (k, 3, S, S) uint8; only if `extents` is not None."""
        out = torch.empty(len(indices), 3, self.canvas, self.canvas, dtype=torch.uint8, pin_memory=pin)
        self.source.copy_into(out.numpy(), indices)
        return out

    def resident(self, device: torch.device, limit: int | None = None) -> torch.Tensor | None:
        """All canvases (n, 3, S, S) on the device, uploaded on first use and kept; None if there are no `extents`.

        Also None if they exceed `limit` bytes. The default limit is a quarter of a GPU's free memory, shared by all data
        sets, and 0 on other devices, where the source's own memory serves as well. The first answer per device is final.
        """
        if device not in self._resident:
            self._resident[device] = self._upload(device, limit)
        return self._resident[device]

    def _upload(self, device: torch.device, limit: int | None) -> torch.Tensor | None:
        each = 3 * self.canvas**2
        if limit is None:
            held = resident_bytes(device)
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            limit = int(RESIDENT_SHARE * (free + held)) - held
        if self.extents is None or len(self) * each > limit:
            return None
        uploaded = torch.empty(len(self), 3, self.canvas, self.canvas, dtype=torch.uint8, device=device)
        _holders.add(self)
        for indices in np.array_split(np.arange(len(self)), max(1, len(self) * each // _CHUNK)):
            uploaded[indices[0] : indices[-1] + 1] = self.canvases(indices)
        return uploaded


_holders: WeakSet[CanvasDataset] = WeakSet()


def resident_bytes(device: torch.device) -> int:
    """Bytes of the data sets on the device; a measurement of the training's memory subtracts them."""
    held = (dataset._resident.get(device) for dataset in _holders)
    return sum(canvases.nbytes for canvases in held if canvases is not None)
