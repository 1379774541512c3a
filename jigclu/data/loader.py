"""Turns groups of indices into batches of canvases, in order; unreadable files are counted and skipped.

Images are decoded by worker processes; stored canvases, which only need copying, are copied in this process.
"""

from __future__ import annotations

import atexit
import logging
import signal
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from jigclu.config import RuntimeConfig
from jigclu.config.machine import usable_cores
from jigclu.data.canvases import CanvasDataset, Sample
from jigclu.data.sources.base import MOST_UNREADABLE as MOST_UNREADABLE

log = logging.getLogger("jigclu")
T = TypeVar("T")


class Batch(NamedTuple):
    """n images of canvas side S."""

    canvas: torch.Tensor  # (n, 3, S, S) uint8
    sizes: torch.Tensor  # (n, 2) int64, [height, width] of the image in the top-left corner
    labels: torch.Tensor  # (n,) int64
    indices: torch.Tensor  # (n,) int64, into the data set; of the substitute if there is one


class Groups(Protocol):
    """Groups of keys, one per batch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[Any]]: ...


class DataError(RuntimeError):
    """Too much of the data is unreadable to continue: one line with the numbers."""


class Unreadable:
    """The distinct unreadable files of one data set, each logged once. Raises DataError above 0.1 % of the data set."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.paths = list(paths)  # of earlier attempts at the job

    def __len__(self) -> int:
        return len(self.paths)

    def report(self, path: str, total: int) -> None:
        """Count an unreadable file. `total`: how many images the data set has."""
        if path in self.paths:
            return
        self.paths.append(path)
        log.warning("unreadable image, skipped: %s", path)
        if len(self) > MOST_UNREADABLE * total:
            raise DataError(f"{len(self)} of {total} images are unreadable (over 0.1 %), the first is {self.paths[0]}")


def batches(
    dataset: CanvasDataset,
    groups: list[list[int]],
    workers: int,
    unreadable: Unreadable,
    substitute: bool,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """One Batch per group of indices, in order, decoded by `workers` processes (0: in this one).

    `substitute` on (training): an unreadable image is replaced by the next readable index, so the batch keeps its size
    for any worker count. Off (evaluation): it is left out and the batch is shorter. `device`: if all canvases of the data
    set are there (`CanvasDataset.resident`), the batches' canvases are taken from it. Raises DataError.
    """
    stream = (
        loaded(_Attempts(dataset, substitute), groups, workers, _collate)
        if dataset.extents is None
        else _copied(dataset, dataset.extents, groups, substitute, device)
    )
    return _counted(dataset, stream, unreadable)


def _counted(
    dataset: CanvasDataset, stream: Iterator[tuple[Batch, list[int]]], unreadable: Unreadable
) -> Iterator[Batch]:
    for batch, broken in stream:
        for index in broken:
            unreadable.report(str(dataset.paths[index]), len(dataset))
        yield batch


def _copied(
    dataset: CanvasDataset,
    extents: np.ndarray,
    groups: list[list[int]],
    substitute: bool,
    device: torch.device | None,
) -> Iterator[tuple[Batch, list[int]]]:
    """The same as `_collate` of a DataLoader's samples, without a DataLoader."""
    readable, pin = extents[:, 0] > 0, torch.cuda.is_available()
    resident = None if device is None else dataset.resident(device)
    for group in groups:
        tried = [_tried(index, readable, substitute) for index in group]
        chosen = np.array([attempts[-1] for attempts in tried if readable[attempts[-1]]], dtype=np.int64)
        rows = (torch.from_numpy(values) for values in (extents[chosen], dataset.labels[chosen], chosen))
        sizes, labels, indices = (row.pin_memory() if pin else row for row in rows)
        if resident is None:
            canvas = dataset.canvases(chosen, pin)
        else:
            canvas = resident.index_select(0, indices.to(resident.device, non_blocking=True))
        yield Batch(canvas, sizes, labels, indices), [i for attempts in tried for i in attempts if not readable[i]]


def _tried(index: int, readable: np.ndarray, substitute: bool) -> list[int]:
    """As _Attempts, for images that are known to be readable or not."""
    tried = [index]
    while substitute and not readable[tried[-1]] and len(tried) <= MOST_UNREADABLE * len(readable):
        tried.append((tried[-1] + 1) % len(readable))
    return tried


def loaded(dataset: Any, groups: Groups, workers: int, collate: Callable[[list[Any]], T]) -> Generator[T, None, None]:
    """`collate` of the samples of each group of keys, in order, read by `workers` processes (0: in this one).

    A caller that may stop before the end must close it: the garbage collector can fail to end the workers.
    """
    stream = _stream(dataset, groups, workers, collate)
    _open_streams.add(stream)
    return stream


def _stream(dataset: Any, groups: Groups, workers: int, collate: Callable[[list[Any]], T]) -> Generator[T, None, None]:
    loader = DataLoader(
        dataset,
        batch_sampler=groups,
        num_workers=min(workers, len(groups)),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # its own, so that creating an iterator draws nothing from the global one
    )
    reading = iter(loader)
    try:
        yield from reading
    finally:  # the frames of a worker's error keep `reading` alive, so the workers would never be asked to end
        getattr(reading, "_shutdown_workers", lambda: None)()


class _Attempts(Dataset[list[Sample]]):
    """Every sample tried for an index: one, or (substitute) as many as it takes to find a readable one."""

    def __init__(self, dataset: CanvasDataset, substitute: bool):
        self.dataset = dataset
        self.substitute = substitute

    def __getitem__(self, index: int) -> list[Sample]:
        tried = [self.dataset[index]]
        # Above the limit there is no point in trying more: Unreadable stops the run as soon as it counts these.
        while self.substitute and not tried[-1].readable and len(tried) <= MOST_UNREADABLE * len(self.dataset):
            tried.append(self.dataset[(tried[-1].index + 1) % len(self.dataset)])
        return tried


def _collate(group: list[list[Sample]]) -> tuple[Batch, list[int]]:
    """The readable samples as one Batch, and the indices of the unreadable ones."""
    samples = [tried[-1] for tried in group if tried[-1].readable]
    batch = Batch(
        canvas=torch.stack([s.canvas for s in samples] or [group[0][0].canvas])[: len(samples)],
        sizes=torch.tensor([[s.height, s.width] for s in samples], dtype=torch.int64).view(-1, 2),
        labels=torch.tensor([s.label for s in samples], dtype=torch.int64),
        indices=torch.tensor([s.index for s in samples], dtype=torch.int64),
    )
    return batch, [s.index for tried in group for s in tried if not s.readable]


def _ignore_signals(_worker: int) -> None:
    """SLURM signals every process of a step; only the main one may react. (torch itself sets one thread per worker.)"""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


# An uncaught error keeps its frames, and so a half-read stream, until the interpreter exits; multiprocessing then sends
# SIGTERM to the workers, which ignore it, and waits forever. Closing the streams first ends the workers properly.
_open_streams: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    for stream in list(_open_streams):
        stream.close()


def loader_workers(runtime: RuntimeConfig, device: torch.device) -> int:
    """Number of decoding processes: as configured, at most one per core; else one per CPU thread in a GPU job, and none in a
    CPU job.

    In a CPU job they would compete with its own threads, which wait for each other (benchmarks/README.md).
    """
    if runtime.workers is not None:
        return min(runtime.workers, len(usable_cores()))
    return torch.get_num_threads() if device.type == "cuda" else 0
