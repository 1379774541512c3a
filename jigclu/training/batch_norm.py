"""Batch norm over the global batch on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch statistics over all ranks.

    torch.nn.SyncBatchNorm refuses CPU tensors, and the tests with several ranks run on CPUs with gloo.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _normalise(self, input) if self.training else super().forward(input)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """The same for vectors (N, C)."""

    def forward(self, input: Tensor) -> Tensor:
        return _normalise(self, input) if self.training else super().forward(input)


def _normalise(norm: nn.BatchNorm1d | nn.BatchNorm2d, input: Tensor) -> Tensor:
    """(N, C) or (N, C, H, W), normalised by the global batch's statistics, which also update the running ones."""
    x = input if input.dtype == torch.float64 else input.float()  # bfloat16 would round even the count
    over, channels = [0, *range(2, x.dim())], (-1, *[1] * (x.dim() - 2))
    count = _AllReduce.apply(x.new_tensor(x.numel() / x.shape[1]))
    mean = _AllReduce.apply(x.sum(dim=over)) / count
    centred = x - mean.view(channels)
    variance = _AllReduce.apply(centred.square().sum(dim=over)) / count
    running = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    assert running[0] is not None and running[1] is not None and running[2] is not None and norm.momentum is not None
    with torch.no_grad():
        running[2].add_(1)
        running[0].lerp_(mean.to(running[0].dtype), norm.momentum)
        running[1].lerp_((variance * count / (count - 1)).to(running[1].dtype), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return (centred * scale.view(channels) + norm.bias.view(channels)).to(input.dtype)


GLOBAL: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
}


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Synchronise every batch norm of `network` over all ranks: SyncBatchNorm on GPUs, those of GLOBAL on CPUs.

    Parameters and buffers keep their names. A module with `local_batch_norm` set is skipped with all its children.
    """
    for name, child in network.named_children():
        if getattr(child, "local_batch_norm", False):
            continue
        if type(child) not in GLOBAL:
            synchronise_batch_norm(child, device)
        elif device.type == "cuda":
            setattr(network, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            child.__class__ = GLOBAL[type(child)]
