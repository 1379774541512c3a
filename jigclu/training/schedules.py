"""Learning rates by epoch (golden g7)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def cosine(lr: float, epoch: int, epochs: int) -> float:
    """Half a cosine over the epochs, constant within one, no warm-up (protocols.md §1.7)."""
    return lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def steps(lr: float, epoch: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """lr * gamma for every milestone reached (protocols.md §2.1)."""
    return lr * gamma ** sum(epoch >= milestone for milestone in milestones)
