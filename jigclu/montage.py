"""Paper §3.1, the montage: patches of the whole batch, permuted and stitched into n new images.

With several ranks, each patch is sent once.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def stitch(patches: Tensor, permutation: Tensor, m: int = 2) -> Tensor:
    """Stitch permuted patches into montages (paper §3.1).

    Args:
        patches: (m*m*N, C, h, w); patch id = position * N + image.
        permutation: (m*m*N,) int64 patch ids.
        m: patches along each side of a montage.

    Returns:
        (N, C, m*h, m*w) montages: montage j shows patch permutation[q * N + j] at position q (row-major).

    Raises:
        ValueError: the numbers of patches, of the permutation and m do not fit.
    """
    count = patches.shape[0]
    if count % (m * m) or permutation.shape != (count,):
        raise ValueError(
            f"{count} patches and a permutation of {tuple(permutation.shape)} do not make {m} x {m} montages"
        )
    return assemble(patches.index_select(0, permutation), m)


def assemble(ordered: Tensor, m: int) -> Tensor:
    """Patches in montage order (position-major: q * N + j) -> (N, C, m*h, m*w), written once and in channels_last."""
    count, channels, height, width = ordered.shape
    shape = (count // (m * m), channels, m * height, m * width)
    montages = torch.empty(shape, dtype=ordered.dtype, device=ordered.device, memory_format=torch.channels_last)
    grid = ordered.view(m, m, -1, channels, height, width).permute(2, 3, 0, 4, 1, 5)
    montages.unflatten(3, (m, width)).unflatten(2, (m, height)).copy_(grid)
    return montages


def cut(montages: Tensor, m: int) -> Tensor:
    """The inverse of `assemble`: (N, C, m*h, m*w) -> (m*m*N, C, h, w), position-major."""
    count, channels, height, width = montages.shape
    grid = montages.view(count, channels, m, height // m, m, width // m)
    return grid.permute(2, 4, 0, 1, 3, 5).reshape(m * m * count, channels, height // m, width // m)


def exchange(patches: Tensor, permutation: Tensor, m: int) -> Tensor:
    """Montages of this rank's slice of the global batch, whose patches are spread over all ranks.

    Every patch is sent only to the rank whose montage shows it.

    Args:
        patches: (m*m*n, C, h, w), this rank's n images; id = position * n + image.
        permutation: (m*m*N,) of the global batch (N = n * world, image = rank * n + local image), the same on every rank.
        m: patches along each side of a montage.

    Returns:
        (n, C, m*h, m*w): montages [rank * n, (rank + 1) * n) of `stitch` on the gathered batch.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    local = patches.shape[0] // (m * m)
    total = local * world
    slots = torch.arange(m * m * total).view(m * m, world, local)  # slot = q * N + j, j = owner * n + local j
    wanted = permutation.cpu()[slots.transpose(0, 1).reshape(world, -1)]  # (to rank, its slots in order) -> patch id
    source = (wanted % total) // local
    local_id = (wanted // total) * local + wanted % local  # the patch's id on its own rank
    send = [local_id[to][source[to] == rank] for to in range(world)]
    received = [int((source[rank] == sender).sum()) for sender in range(world)]
    outgoing = patches[torch.cat(send).to(patches.device)].contiguous()
    incoming = outgoing.new_empty((sum(received), *patches.shape[1:]))
    dist.all_to_all_single(incoming, outgoing, received, [len(ids) for ids in send])
    # The received patches are sorted by sender and then by slot: put them into slot order.
    order = torch.empty(len(source[rank]), dtype=torch.int64)
    order[torch.argsort(source[rank], stable=True)] = torch.arange(len(order))
    return assemble(incoming[order.to(patches.device)], m)
