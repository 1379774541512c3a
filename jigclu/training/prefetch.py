"""Prefetch: on a GPU the next batch is augmented on a separate stream while the network trains on the current one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jigclu.data.loader import Batch

Prepared = tuple[Tensor, ...]


def prefetched(
    stream: Iterator[Batch], prepare: Callable[[Batch, int], Prepared], device: torch.device, first: int
) -> Iterator[tuple[int, Batch, Prepared]]:
    """(step, batch, `prepare(batch, step)`) for every batch, steps counted from `first`.

    On a CPU there is nothing to overlap, so each batch is prepared when it is needed. A batch prefetched before a stop is dropped
    and prepared again by the next attempt: `prepare` keeps no state.
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
            batch = next(stream, None)  # inside the stream: a resident data set's canvases are selected on the device
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
    """Make the network's stream wait for this batch only, and tell the allocator that this stream now uses its memory."""
    current = torch.cuda.current_stream(device)
    current.wait_event(done)
    for tensor in (*prepared, *batch):
        if tensor.is_cuda:
            tensor.record_stream(current)
    return step, batch, prepared
