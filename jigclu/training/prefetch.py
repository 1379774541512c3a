"""The next batch's augmentation while the network is at work: on a GPU a stream of its own, one step ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jigclu.data.loader import Batch

Prepared = tuple[Tensor, ...]


def prefetched(
    stream: Iterator[Batch], prepare: Callable[[Batch, int], Prepared], device: torch.device, first: int
) -> Iterator[tuple[int, Batch, Prepared]]:
    """(step, batch, what `prepare` made of it) for every batch, steps counted from `first`.

    On a CPU there is nothing to overlap: each is prepared when it is asked for. What was prepared ahead of a stop is dropped,
    and made again by the next attempt: `prepare` keeps no state.
    """
    if device.type != "cuda":
        for step, batch in enumerate(stream, first):
            yield step, batch, prepare(batch, step)
        return
    yield from _overlapped(stream, prepare, device, first)


def _overlapped(
    stream: Iterator[Batch], prepare: Callable[[Batch, int], Prepared], device: torch.device, first: int
) -> Iterator[tuple[int, Batch, Prepared]]:
    side, waiting, step = torch.cuda.Stream(device), None, first
    while True:
        with torch.cuda.stream(side):
            batch = next(stream, None)  # here, for a resident data set's canvases are picked on the device
            if batch is not None:
                prepared = prepare(batch, step)
                done = torch.cuda.Event()
                done.record(side)
        if waiting is not None:
            yield _hand_over(*waiting, device)
        if batch is None:
            return
        waiting, step = (step, batch, prepared, done), step + 1


def _hand_over(
    step: int, batch: Batch, prepared: Prepared, done: torch.cuda.Event, device: torch.device
) -> tuple[int, Batch, Prepared]:
    """The network's stream waits for this batch alone, not for the one after it; the allocator hears who uses the memory now."""
    here = torch.cuda.current_stream(device)
    here.wait_event(done)
    for tensor in (*prepared, *batch):
        if tensor.is_cuda:
            tensor.record_stream(here)
    return step, batch, prepared
