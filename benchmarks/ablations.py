"""Ablations of performance settings: the rate of the bare or full step with each setting changed alone, on this device."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import torch

from benchmarks.step import network_of, optimizer_of
from benchmarks.timing import Group, Ratio, Row, timed
from benchmarks.workload import Workload, one_batch, photographs
from jigclu import methods
from jigclu.data.loader import Batch
from jigclu.methods.base import Method
from jigclu.network import Backbone
from jigclu.training.prefetch import prefetched

Step = Callable[[], object]


def measure(workload: Workload, rounds: int) -> Group:
    rounds = max(3, rounds // 2)
    group = Group("ablations", workload.words)
    montages = torch.randn(workload.batch_size, 3, workload.image_size, workload.image_size, device=workload.device)
    montages = montages.contiguous(memory_format=torch.channels_last)
    base = bare(workload, montages)
    variants: dict[str, Step] = {
        "contiguous, not channels_last": bare(workload, montages.contiguous(), contiguous=True),
        "float32, not bfloat16": bare(workload, montages, bfloat16=False),
        "fused optimiser": bare(workload, montages, fused=True),
    }
    if workload.device.type == "cuda" or shutil.which("g++"):
        variants["torch.compile of the backbone"] = bare(workload, montages, compiled=True)
    for name, step in variants.items():
        pair = timed("", {f"bare, beside {name}": base, name: step}, rounds, items=workload.batch_size)
        group.rows += pair
        group.ratios.append(Ratio(f"{name}: images/s against the bare step's", pair[0].median / pair[1].median))
    if workload.device.type == "cuda":
        group.rows += (pair := overlapped(workload, rounds))
        group.ratios.append(
            Ratio("augmentation one step ahead: images/s against in sequence", pair[0].median / pair[1].median)
        )
    return group


def bare(
    workload: Workload,
    montages: torch.Tensor,
    *,
    contiguous: bool = False,
    bfloat16: bool = True,
    fused: bool = False,
    compiled: bool = False,
) -> Step:
    module: torch.nn.Module = Backbone(workload.backbone)
    module = module.to(workload.device).train() if contiguous else network_of(workload, module)
    optimizer = optimizer_of(workload, module)
    if fused:
        optimizer = torch.optim.SGD(module.parameters(), **{**optimizer.defaults, "fused": True, "foreach": False})
    network = torch.compile(module) if compiled else module

    def step() -> None:
        with torch.autocast(workload.device.type, torch.bfloat16, enabled=bfloat16):
            loss = network(montages).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def method_and_batch(workload: Workload) -> tuple[Method, Batch]:
    with photographs(workload, workload.batch_size) as dataset:
        batch = one_batch(workload, dataset)
        return methods.build(workload.config(), 0, workload.rank_info, len(dataset.classes)), batch


def overlapped(workload: Workload, rounds: int) -> list[Row]:
    """Eight steps, with each batch augmented in sequence, and one step ahead on a separate stream."""
    method, batch = method_and_batch(workload)
    network = network_of(workload, method.network)
    optimizer = optimizer_of(workload, network)

    def run(prepared: Iterator[tuple[torch.Tensor, ...]]) -> None:
        for inputs in prepared:
            with torch.autocast(workload.device.type, torch.bfloat16):
                loss, _ = method.loss(network, inputs)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    pinned = Batch(*(part.pin_memory() for part in batch))

    def one_step_ahead() -> Iterator[tuple[torch.Tensor, ...]]:
        batches = iter([pinned] * 8)
        stream = prefetched(batches, lambda batch, step: method.prepare(batch, 0, step), workload.device, 0)
        return (prepared for _, _, prepared in stream)

    works: dict[str, Step] = {
        "augmentation in sequence": lambda: run(method.prepare(pinned, 0, step) for step in range(8)),
        "augmentation one step ahead": lambda: run(one_step_ahead()),
    }
    return timed("", works, rounds, items=8 * workload.batch_size)
