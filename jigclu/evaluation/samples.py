"""Class-balanced parts of a split, drawn by the job's seed: a held-out tenth, and at most so many images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jigclu import counter_rng

HELD_OUT, LIMITED = 0, 1  # two draws of one seed


def held_out_tenth(labels: np.ndarray, seed: int) -> Tensor:
    """(n,) bool: a tenth of each class, rounded, at least one image; none of a class with a single image.

    labels: (n,) int64, of the whole split.
    """
    sizes = np.bincount(labels)
    wanted = np.maximum(np.round(sizes / 10), 1) * (sizes > 1)
    return torch.from_numpy(_ranks(labels, seed, HELD_OUT) < wanted[labels])


def at_most(labels: np.ndarray, limit: int, seed: int) -> list[int]:
    """The positions, in order, of at most `limit` images, of each class as many as of the others while it has any.

    labels: (n,) int64, of the whole split.
    """
    if len(labels) <= limit:
        return list(range(len(labels)))
    order = np.lexsort((labels, _ranks(labels, seed, LIMITED)))
    return sorted(order[:limit].tolist())


def _ranks(labels: np.ndarray, seed: int, draw: int) -> np.ndarray:
    """(n,) int64: each image's place in a random order of its class, from 0."""
    shuffled = counter_rng.permutation(seed, counter_rng.SAMPLE, draw, 0, len(labels)).numpy()
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]  # class by class, each in random order
    sizes = np.bincount(labels)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[grouped] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks
