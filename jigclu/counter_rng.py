"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011) on torch integers.

The key is (seed, purpose), the counter (epoch, image index, patch): a sample's numbers depend on nothing else, not on batch,
worker, rank, device or a resume. There is no state to save.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Purposes keep the streams of one seed apart.
AUGMENT, MONTAGE, SHUFFLE, PROBE, KEYS, STEP, SAMPLE = 1, 2, 3, 4, 5, 6, 7

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words in [0, 2^32) for each counter; counters are int64 tensors that broadcast, holding 32-bit words."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        # The int64 product wraps and has the same bits as the unsigned one; the mask undoes the arithmetic shift.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (p0 >> 32) & _MASK, p0 & _MASK
        high1, low1 = (p1 >> 32) & _MASK, p1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniforms(seed: int, purpose: int, epoch: int, indices: Tensor, patches: int, count: int) -> Tensor:
    """Uniform float64 in [0, 1) with 32 random bits, shape (N, patches, count), for image `indices` (N,)."""
    blocks = -(-count // 4)
    words = philox(
        (
            torch.arange(blocks)[None, None, :],
            torch.arange(patches)[None, :, None],
            indices.to(torch.int64).cpu()[:, None, None],
            torch.tensor(epoch),
        ),
        (seed & _MASK, ((seed >> 32) ^ purpose * 0x9E3779B9) & _MASK),
    )
    return torch.stack(words, -1).flatten(2)[:, :, :count].double() / 2**32


def permutation(seed: int, purpose: int, epoch: int, step: int, length: int) -> Tensor:
    """A random permutation of `length`, int64, the same on every rank and device.

    The order of 63 random bits each: a tie is practically impossible, and a stable sort resolves it.
    """
    first, second, _, _ = philox(
        (torch.arange(length), torch.tensor(step), torch.tensor(epoch), torch.tensor(0)),
        (seed & _MASK, ((seed >> 32) ^ purpose * 0x9E3779B9) & _MASK),
    )
    return torch.argsort((first << 31) ^ second, stable=True)
