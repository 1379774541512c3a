"""The training step beside the bare backbone, and where its time goes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.setting import Setting, one_batch, photographs
from benchmarks.timing import Group, Ratio, Row, timed, wait
from jigclu import methods
from jigclu.data.loader import Batch
from jigclu.methods.base import Method
from jigclu.network import Backbone
from jigclu.training.prefetch import prefetched

TARGET = {"cuda": 0.95, "cpu": 0.93}


def measure(here: Setting, rounds: int) -> Group:
    with photographs(here, here.batch_size) as dataset:
        batch = one_batch(here, dataset)
        method = methods.build(here.config(), 0, here.where, len(dataset.classes))
        montages = method.prepare(batch, 0, 0)[0]
        bare, full = bare_step(here, montages), full_step(here, method, batch)
        rows = timed("", {"bare backbone": bare, "full step": full}, rounds, items=here.batch_size)
        rows += parts(here, method, batch, rounds)
    group = Group("step", here.words, rows)
    median = {row.name: row.median for row in rows}
    target = (">=", TARGET[here.device.type])
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


def network_of(here: Setting, module: torch.nn.Module) -> torch.nn.Module:
    return module.to(here.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def optimizer_of(here: Setting, network: torch.nn.Module) -> torch.optim.SGD:
    given = here.config().optimizer
    return torch.optim.SGD(network.parameters(), given.lr, momentum=given.momentum, weight_decay=given.weight_decay)


def bare_step(here: Setting, montages: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and optimiser step of the backbone alone on montages that are there already: the limit."""
    network = network_of(here, Backbone(here.backbone))
    optimizer = optimizer_of(here, network)

    def step() -> None:
        with torch.autocast(here.device.type, torch.bfloat16):
            loss = network(montages).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def full_step(here: Setting, method: Method, batch: Batch) -> Callable[[], None]:
    """Copy, augmentation, montage, network with heads, loss, backward, optimiser step: all but decoding."""
    network = network_of(here, method.network)
    optimizer = optimizer_of(here, network)
    same = itertools.repeat(pin(here, batch))
    stream = prefetched(same, lambda one, count: method.prepare(one, 0, count), here.device, 0)  # as the trainer does

    def step() -> None:
        _, _, prepared = next(stream)
        with torch.autocast(here.device.type, torch.bfloat16):
            loss, _ = method.loss(network, prepared)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def pin(here: Setting, batch: Batch) -> Batch:
    """As the loader gives it: in pinned memory where there is a GPU."""
    return Batch(*(part.pin_memory() for part in batch)) if here.device.type == "cuda" else batch


def parts(here: Setting, method: Method, batch: Batch, rounds: int) -> list[Row]:
    """One part of the step at a time, waited for: their sum may pass the step's, in which a GPU overlaps them."""
    network, pinned = network_of(here, method.network), pin(here, batch)
    there = batch._replace(canvas=batch.canvas.to(here.device))
    prepared = method.prepare(there, 0, 0)

    def loss() -> torch.Tensor:
        with torch.autocast(here.device.type, torch.bfloat16):
            value: torch.Tensor = method.loss(network, prepared)[0]
        return value

    works: dict[str, Callable[[], Any]] = {
        "copy": lambda: pinned.canvas.to(here.device, non_blocking=True),
        "augment": lambda: method.prepare(there, 0, 0),
        "forward": loss,
        "forward and backward": lambda: loss().backward(),
    }
    rows = timed("", works, rounds, items=here.batch_size)
    wait()
    return rows
