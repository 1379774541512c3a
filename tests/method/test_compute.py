"""Multiply-adds and forward passes counted from a config, against those of the real network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from jigclu.config import PretrainConfig
from jigclu.config.compute import RESNETS, cost_metrics, forward_passes, giga_multiply_adds
from jigclu.network import Backbone


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet18", 104), ("resnet34", 96), ("resnet50", 72)])
def test_multiply_adds_are_those_of_the_networks_convolutions(name: str, size: int) -> None:
    network, counted = Backbone(name).eval(), []

    def count(module: nn.Conv2d, _: Any, output: torch.Tensor) -> None:
        counted.append(output.numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1])

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)  # type: ignore[arg-type]
    with torch.no_grad():
        network.maps(torch.zeros(1, 3, size, size))
    assert giga_multiply_adds(name, size) == pytest.approx(sum(counted) / 1e9)


def test_every_backbone_can_be_counted() -> None:
    values = [giga_multiply_adds(name, 224) for name in RESNETS]
    assert values == sorted(values) and values[1] == pytest.approx(1.81, abs=0.01)


def test_jigclu_costs_three_forward_passes_moco_four_and_simclr_six() -> None:
    costs = {
        name: forward_passes(PretrainConfig.model_validate({"method": {"name": name}}))
        for name in ("jigclu", "moco", "simclr", "supervised")
    }
    assert costs == pytest.approx({"jigclu": 3.0, "moco": 4.0, "simclr": 6.0, "supervised": 3.0})
    found = cost_metrics(PretrainConfig(backbone="resnet18", image_size=64), 1000)
    assert found == pytest.approx({"forwards": 3.0, "gmac": 3 * 0.148046, "images_seen": 1000.0}, rel=1e-4)
