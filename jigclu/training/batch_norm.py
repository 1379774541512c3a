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
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()  # bfloat16 would round even the count
        count = _AllReduce.apply(x.new_tensor(x.numel() / x.shape[1]))
        mean = _AllReduce.apply(x.sum(dim=(0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _AllReduce.apply(centred.square().sum(dim=(0, 2, 3))) / count
        running = (self.running_mean, self.running_var, self.num_batches_tracked)
        assert (
            running[0] is not None and running[1] is not None and running[2] is not None and self.momentum is not None
        )
        with torch.no_grad():
            running[2].add_(1)
            running[0].lerp_(mean.to(running[0].dtype), self.momentum)
            running[1].lerp_((variance * count / (count - 1)).to(running[1].dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Synchronise every BatchNorm2d of `network` over all ranks: SyncBatchNorm on GPUs, GlobalBatchNorm2d on CPUs.

    Parameters and buffers keep their names. A module with `local_batch_norm` set is skipped with all its children.
    """
    for name, child in network.named_children():
        if getattr(child, "local_batch_norm", False):
            continue
        if type(child) is not nn.BatchNorm2d:
            synchronise_batch_norm(child, device)
        elif device.type == "cuda":
            setattr(network, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            child.__class__ = GlobalBatchNorm2d
