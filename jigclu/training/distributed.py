"""One process or many: ranks, devices, batch norm over all ranks, gathering with gradients."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """Where this process stands."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def place(device: str = "auto", threads: int | None = None) -> Place:
    """Join the ranks of torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*), if any; choose device and CPU threads."""
    given = os.environ.get("JIGCLU_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    torch.set_num_threads(threads or int(given or len(os.sched_getaffinity(0))))
    rank, world, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    cuda = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not cuda:
        raise RuntimeError("runtime.device is cuda, but torch sees no GPU here")
    where = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where)
    if dist.is_initialized():
        return Place(dist.get_rank(), dist.get_world_size(), where)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world)
        return Place(rank, world, where)
    return Place(0, 1, where)


class _SumGradient(torch.autograd.Function):
    """All ranks' tensors stacked; the gradient of a sum over ranks, each of which computed the same loss from all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.contiguous()  # first: what is received must lie in the same order as what is sent
        out = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(out, value)
        return torch.stack(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gather(value: Tensor) -> Tensor:
    """(...) -> (world, ...), with gradient.

    Every rank computes the same global loss; summed over ranks here and averaged over them by DistributedDataParallel, the
    parameters get exactly that loss's gradient (protocols.md §1.6).
    """
    return _SumGradient.apply(value)


def gather_batch(values: Tensor, positions: int, where: Place) -> Tensor:
    """(positions * n, ...) of this rank's n images -> (positions * N, ...) of the global batch, both position-major.

    Image = rank * n + local image. With gradient, see `gather`; the values themselves where there is one rank.
    """
    if where.world == 1:
        return values
    return gather(values).unflatten(1, (positions, -1)).transpose(0, 1).flatten(0, 2)


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

    torch.nn.SyncBatchNorm refuses CPU tensors, and gloo runs are how CI sees two ranks agree.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()  # bfloat16 would round the very count
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
    """Every BatchNorm2d below `network` over all ranks: torch's own on GPUs, ours on CPUs.

    Parameters and buffers keep their names. A module that says `local_batch_norm` is passed over with all that it holds.
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


def distribute(network: nn.Module, where: Place) -> nn.Module:
    """The network ready to train over the ranks; itself where there is one.

    Buffers aren't sent round before every step: batch norm's are the same on every rank because its statistics are, a queue
    of keys because every rank enqueues the same ones.
    """
    if where.world == 1:
        return network
    synchronise_batch_norm(network, where.device)
    return nn.parallel.DistributedDataParallel(
        network, device_ids=[where.device] if where.device.type == "cuda" else None, broadcast_buffers=False
    )


def agree(flags: int, where: Place) -> int:
    """Bitwise OR of small flags over all ranks."""
    if where.world == 1:
        return flags
    bits = torch.tensor([flags & 1, flags >> 1 & 1], device=where.device)
    dist.all_reduce(bits, dist.ReduceOp.MAX)
    return int(bits[0]) | int(bits[1]) << 1
