"""McNemar's test: two checkpoints on the same images, by which of them each has right. It says nothing about other seeds."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

EXACT = 1000  # discordant images up to which the exact test is used


class Discordant(NamedTuple):
    """`first`, `second`: images that only this one has right; `p`: two-sided."""

    first: int
    second: int
    p: float


def mcnemar(first: bytes, second: bytes, images: int) -> Discordant | None:
    """Compare two `correct.bits` (numpy.packbits, a bit per image in the order of the validation set); None if they do not
    have that many images."""
    bits = [np.unpackbits(np.frombuffer(content, np.uint8)) for content in (first, second)]
    if images <= 0 or any(len(one) != -(-images // 8) * 8 for one in bits):
        return None
    right, other = (one[:images].astype(bool) for one in bits)
    return Discordant(only := int((right & ~other).sum()), rest := int((other & ~right).sum()), _p(only, rest))


def _p(first: int, second: int) -> float:
    """Exact binomial, or normal with continuity correction if there are many."""
    count, least = first + second, min(first, second)
    if count == 0:
        return 1.0
    if count > EXACT:
        return math.erfc(max(0.0, abs(first - second) - 1) / math.sqrt(2 * count))
    below = sum(math.comb(count, k) for k in range(least + 1)) / 2**count
    return min(1.0, 2 * below)
