"""Data sets by name, as uint8 canvases: decoded once on the CPU, everything random happens on the device afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import Dataset

from jigclu.config import ConfigError, DataConfig
from jigclu.data.catalog import Source, Split, catalogue

RESIDENT_SHARE = 0.25  # of a GPU's free memory, for the canvases of all data sets of a job
_CHUNK = 1 << 26  # bytes on their way to the device at a time


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
    """A source's images on canvases of `canvas` pixels. `paths` (n,) are relative names, `labels` (n,) int64.

    `extents`: (n, 2) int64 [height, width], (0, 0) of an unreadable image, where the source holds canvases of that side, so that
    reading is copying; None: images are decoded.
    """

    def __init__(self, source: Source, canvas: int):
        self.source = source
        self.canvas = canvas
        self.classes = source.classes
        self.labels = source.labels
        self.paths = source.paths
        self.fingerprint = source.fingerprint
        self.extents = source.extents(canvas)
        self._resident: dict[torch.device, torch.Tensor | None] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        canvas = torch.zeros(3, self.canvas, self.canvas, dtype=torch.uint8)
        label = int(self.labels[index])
        try:
            pixels = self.source.pixels(index, self.canvas)
        except ConfigError:  # not one file: the pack was replaced
            raise
        except Exception:  # whatever a decoder raises on a broken file; the loader counts and steps over it
            return Sample(canvas, self.canvas, self.canvas, label, index, False)
        height, width = pixels.shape[1:]
        canvas[:, :height, :width] = torch.from_numpy(pixels)
        return Sample(canvas, height, width, label, index, True)

    def canvases(self, indices: np.ndarray, pin: bool = False) -> torch.Tensor:
        """(k, 3, S, S) uint8 of the (k,) int64 indices, copied; only where there are `extents`."""
        out = torch.empty(len(indices), 3, self.canvas, self.canvas, dtype=torch.uint8, pin_memory=pin)
        self.source.copy_into(out.numpy(), indices)
        return out

    def resident(self, device: torch.device, limit: int | None = None) -> torch.Tensor | None:
        """All canvases (n, 3, S, S) on the device, put there when first asked for and kept; None where there are no `extents`.

        None too where they are more than `limit` bytes: by default what other data sets leave of a quarter of what a GPU has free,
        and 0 elsewhere, where the source's own memory serves as well. The first answer about a device stands.
        """
        if device not in self._resident:
            self._resident[device] = self._upload(device, limit)
        return self._resident[device]

    def _upload(self, device: torch.device, limit: int | None) -> torch.Tensor | None:
        each = 3 * self.canvas**2
        if limit is None:
            there = resident_bytes(device)
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            limit = int(RESIDENT_SHARE * (free + there)) - there
        if self.extents is None or len(self) * each > limit:
            return None
        held = torch.empty(len(self), 3, self.canvas, self.canvas, dtype=torch.uint8, device=device)
        _holders.add(self)
        for places in np.array_split(np.arange(len(self)), max(1, len(self) * each // _CHUNK)):
            held[places[0] : places[-1] + 1] = self.canvases(places)
        return held


_holders: WeakSet[CanvasDataset] = WeakSet()


def resident_bytes(device: torch.device) -> int:
    """Of the data sets that lie on the device: data, which a measurement of training's memory leaves out."""
    held = (dataset._resident.get(device) for dataset in _holders)
    return sum(canvases.nbytes for canvases in held if canvases is not None)
