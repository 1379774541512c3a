"""Each lever alone, on against off: what a setting brings to the bare or the full step on this device."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import torch

from benchmarks.setting import Setting, one_batch, photographs
from benchmarks.step import network_of, optimizer_of
from benchmarks.timing import Group, Ratio, Row, timed
from jigclu import methods
from jigclu.data.loader import Batch
from jigclu.methods.base import Method
from jigclu.network import Backbone
from jigclu.training.prefetch import prefetched

Step = Callable[[], object]


def measure(here: Setting, rounds: int) -> Group:
    rounds = max(3, rounds // 2)
    group = Group("levers", here.words)
    montages = torch.randn(here.batch_size, 3, here.image_size, here.image_size, device=here.device)
    montages = montages.contiguous(memory_format=torch.channels_last)
    base = bare(here, montages)
    variants: dict[str, Step] = {
        "contiguous, not channels_last": bare(here, montages.contiguous(), contiguous=True),
        "float32, not bfloat16": bare(here, montages, bfloat16=False),
        "fused optimiser": bare(here, montages, fused=True),
    }
    if here.device.type == "cuda" or shutil.which("g++"):
        variants["torch.compile of the backbone"] = bare(here, montages, compiled=True)
    for name, step in variants.items():
        pair = timed("", {f"bare, beside {name}": base, name: step}, rounds, items=here.batch_size)
        group.rows += pair
        group.ratios.append(Ratio(f"{name}: images/s against the bare step's", pair[0].median / pair[1].median))
    if here.device.type == "cuda":
        group.rows += (pair := overlapped(here, rounds))
        group.ratios.append(
            Ratio("augmentation one step ahead: images/s against in turn", pair[0].median / pair[1].median)
        )
    return group


def bare(
    here: Setting,
    montages: torch.Tensor,
    *,
    contiguous: bool = False,
    bfloat16: bool = True,
    fused: bool = False,
    compiled: bool = False,
) -> Step:
    module: torch.nn.Module = Backbone(here.backbone)
    module = module.to(here.device).train() if contiguous else network_of(here, module)
    optimizer = optimizer_of(here, module)
    if fused:
        optimizer = torch.optim.SGD(module.parameters(), **{**optimizer.defaults, "fused": True, "foreach": False})
    network = torch.compile(module) if compiled else module

    def step() -> None:
        with torch.autocast(here.device.type, torch.bfloat16, enabled=bfloat16):
            loss = network(montages).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def method_and_batch(here: Setting) -> tuple[Method, Batch]:
    with photographs(here, here.batch_size) as dataset:
        batch = one_batch(here, dataset)
        return methods.build(here.config(), 0, here.where, len(dataset.classes)), batch


def overlapped(here: Setting, rounds: int) -> list[Row]:
    """Eight steps with each batch's augmentation in turn, and on a stream of its own one step ahead."""
    method, batch = method_and_batch(here)
    network = network_of(here, method.network)
    optimizer = optimizer_of(here, network)

    def run(prepared: Iterator[tuple[torch.Tensor, ...]]) -> None:
        for one in prepared:
            with torch.autocast(here.device.type, torch.bfloat16):
                loss, _ = method.loss(network, one)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    pinned = Batch(*(part.pin_memory() for part in batch))
    works: dict[str, Step] = {
        "augmentation in turn": lambda: run(method.prepare(pinned, 0, step) for step in range(8)),
        "augmentation one step ahead": lambda: run(
            made
            for _, _, made in prefetched(
                iter([pinned] * 8), lambda one, step: method.prepare(one, 0, step), here.device, 0
            )
        ),
    }
    return timed("", works, rounds, items=8 * here.batch_size)
