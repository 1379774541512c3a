"""One process or many: ranks, devices, batch norm over all ranks, gathering with gradients."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jigclu.config.machine import core_names, threads_from_environment, usable_cores
from jigclu.files import Shares, runtime_folder
from jigclu.training.batch_norm import synchronise_batch_norm

log = logging.getLogger("jigclu")


@dataclass(frozen=True)
class RankInfo:
    """This process's rank, the number of ranks, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join_ranks(device: str = "auto", threads: int | None = None) -> RankInfo:
    """Join the ranks given by torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*), if any; choose device and threads."""
    torch.set_num_threads(choose_threads(threads))
    rank, world, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    cuda = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not cuda:
        raise RuntimeError("runtime.device is cuda, but torch sees no GPU here")
    own_device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(own_device)
    if dist.is_initialized():
        return RankInfo(dist.get_rank(), dist.get_world_size(), own_device)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world)
        return RankInfo(rank, world, own_device)
    return RankInfo(0, 1, own_device)


def choose_threads(configured: int | None = None) -> int:
    """CPU threads of this process: as configured, as JIGCLU_THREADS or SLURM says, else one per core; never more than cores.

    The ranks of a job on one machine share its cores. On SLURM, where a node may declare more CPUs than it has, so do
    the jobs. A line in the log says if there are fewer than were asked for. ConfigError for a wrong JIGCLU_THREADS.
    """
    cores, from_user = len(usable_cores()), threads_from_environment()
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    from_slurm = int(slurm) if slurm.isdecimal() and int(slurm) > 0 else None
    wanted = configured or from_user or from_slurm or cores
    bound = wanted == cores and from_slurm  # SLURM gave this rank cores of its own
    most = cores if bound else max(1, cores // _ranks_here())
    if from_slurm and not from_user:
        most = _free_cores(min(wanted, most))
    if wanted > most and (configured or from_user or from_slurm):
        source = "runtime.threads" if configured else "JIGCLU_THREADS" if from_user else "SLURM_CPUS_PER_TASK"
        log.warning(
            "%s is %d, but this process has %d of %d usable cores: %d threads", source, wanted, most, cores, most
        )
    return min(wanted, most)


def _ranks_here() -> int:
    """Ranks of this job on this machine."""
    world, local = os.environ.get("WORLD_SIZE", ""), os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(local) if local.isdecimal() and world.isdecimal() and int(world) > 1 and int(local) > 0 else 1


@cache
def _free_cores(most: int) -> int:
    """How many of this process's cores no other job has locked; they are now this process's. At least 1."""
    if (place := runtime_folder()) is None:
        return most
    shares = _held.setdefault("shares", Shares(place))
    taken = shares.take(core_names(usable_cores()), most)
    shares.note(taken, orchestrator=os.getpid(), job=os.getpid(), store="")
    return max(1, len(taken))


_held: dict[str, Shares] = {}  # until the process ends


# Own autograd functions here and in batch_norm.py: torch.distributed.nn.functional is deprecated (torch 2.15), and the gradient of
# its all_gather differs by a bit with three ranks.
class _SumGradient(torch.autograd.Function):
    """All ranks' tensors stacked. Backward: the sum of the ranks' gradients, each rank having computed the same loss."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.contiguous()  # first, so that receive buffers have the same memory layout as what is sent
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


def gather_batch(values: Tensor, positions: int, rank_info: RankInfo) -> Tensor:
    """(positions * n, ...) of this rank's n images -> (positions * N, ...) of the global batch, both position-major.

    Image = rank * n + local image. With gradient, see `gather`; with one rank, the values themselves.
    """
    if rank_info.world == 1:
        return values
    return gather(values).unflatten(1, (positions, -1)).transpose(0, 1).flatten(0, 2)


def distribute(network: nn.Module, rank_info: RankInfo) -> nn.Module:
    """The network wrapped for training on several ranks; with one rank, the network itself.

    Buffers are not broadcast before every step: batch norm's are the same on every rank because its statistics are, and MoCo's
    queue because every rank enqueues the same keys.
    """
    if rank_info.world == 1:
        return network
    synchronise_batch_norm(network, rank_info.device)
    return nn.parallel.DistributedDataParallel(
        network, device_ids=[rank_info.device] if rank_info.device.type == "cuda" else None, broadcast_buffers=False
    )


def agree(flags: int, rank_info: RankInfo) -> int:
    """Bitwise OR of small flags over all ranks."""
    if rank_info.world == 1:
        return flags
    bits = torch.tensor([flags & 1, flags >> 1 & 1], device=rank_info.device)
    dist.all_reduce(bits, dist.ReduceOp.MAX)
    return int(bits[0]) | int(bits[1]) << 1
