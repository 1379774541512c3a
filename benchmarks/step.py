"""The training step compared with the bare backbone, and the time of its parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import Group, Ratio, Row, timed, wait
from benchmarks.workload import Workload, one_batch, photographs
from jigclu import methods
from jigclu.data.loader import Batch
from jigclu.methods.base import Method
from jigclu.network import Backbone
from jigclu.training.prefetch import prefetched

TARGET = {"cuda": 0.95, "cpu": 0.93}


def measure(workload: Workload, rounds: int) -> Group:
    with photographs(workload, workload.batch_size) as dataset:
        batch = one_batch(workload, dataset)
        method = methods.build(workload.config(), 0, workload.rank_info, len(dataset.classes))
        montages = method.prepare(batch, 0, 0)[0]
        bare, full = bare_step(workload, montages), full_step(workload, method, batch)
        rows = timed("", {"bare backbone": bare, "full step": full}, rounds, items=workload.batch_size)
        rows += parts(workload, method, batch, rounds)
    group = Group("step", workload.words, rows)
    median = {row.name: row.median for row in rows}
    target = (">=", TARGET[workload.device.type])
    group.ratios.append(
        Ratio("full step / bare backbone, images/s", median["bare backbone"] / median["full step"], target)
    )
    whole = median["full step"]
    median["backward"] = median["forward and backward"] - median["forward"]
    group.ratios += [
        Ratio(f"share of the full step: {name}", median[name] / whole)
        for name in ("copy", "augment", "forward", "backward")
    ]
    return group


def network_of(workload: Workload, module: torch.nn.Module) -> torch.nn.Module:
    return module.to(workload.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def optimizer_of(workload: Workload, network: torch.nn.Module) -> torch.optim.SGD:
    given = workload.config().optimizer
    return torch.optim.SGD(network.parameters(), given.lr, momentum=given.momentum, weight_decay=given.weight_decay)


def bare_step(workload: Workload, montages: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and optimiser step of the backbone alone on ready montages: the limit."""
    network = network_of(workload, Backbone(workload.backbone))
    optimizer = optimizer_of(workload, network)

    def step() -> None:
        with torch.autocast(workload.device.type, torch.bfloat16):
            loss = network(montages).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def full_step(workload: Workload, method: Method, batch: Batch) -> Callable[[], None]:
    """Copy, augmentation, montage, network with heads, loss, backward, optimiser step: all but decoding."""
    network = network_of(workload, method.network)
    optimizer = optimizer_of(workload, network)
    same = itertools.repeat(pin(workload, batch))
    stream = prefetched(
        same, lambda item, step: method.prepare(item, 0, step), workload.device, 0
    )  # as the trainer does

    def step() -> None:
        _, _, prepared = next(stream)
        with torch.autocast(workload.device.type, torch.bfloat16):
            loss, _ = method.loss(network, prepared)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def pin(workload: Workload, batch: Batch) -> Batch:
    """The batch as the loader gives it: in pinned memory if there is a GPU."""
    return Batch(*(part.pin_memory() for part in batch)) if workload.device.type == "cuda" else batch


def parts(workload: Workload, method: Method, batch: Batch, rounds: int) -> list[Row]:
    """Each part of the step timed separately: their sum may exceed the step's time, because a GPU overlaps them."""
    network, pinned = network_of(workload, method.network), pin(workload, batch)
    on_device = batch._replace(canvas=batch.canvas.to(workload.device))
    prepared = method.prepare(on_device, 0, 0)

    def loss() -> torch.Tensor:
        with torch.autocast(workload.device.type, torch.bfloat16):
            value: torch.Tensor = method.loss(network, prepared)[0]
        return value

    works: dict[str, Callable[[], Any]] = {
        "copy": lambda: pinned.canvas.to(workload.device, non_blocking=True),
        "augment": lambda: method.prepare(on_device, 0, 0),
        "forward": loss,
        "forward and backward": lambda: loss().backward(),
    }
    rows = timed("", works, rounds, items=workload.batch_size)
    wait()
    return rows
