"""Accuracy: hits, top-1 and per-class counts."""

from __future__ import annotations

import torch
from torch import Tensor


def hits(scores: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> Tensor:
    """How many of the (n, classes) scores have their label among the k best, (len(ks),) float64; k is capped at the classes."""
    top = scores.topk(min(max(ks), scores.shape[1]), dim=1).indices
    found = top == labels[:, None]
    return torch.stack([found[:, :k].any(dim=1).double().sum() for k in ks])


def accuracy(scores: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """{"top1": percent, "top5": percent} of (n, classes) scores; k is capped at the number of classes."""
    return {
        f"top{k}": 100 * (found / len(labels)) for k, found in zip(ks, hits(scores, labels, ks).tolist(), strict=True)
    }


def by_class(right: Tensor, labels: Tensor, classes: int) -> Tensor:
    """right (n,) bool and labels (n,) -> (2, classes) int64: how many were right, how many there are."""
    return torch.stack([torch.bincount(labels[right], minlength=classes), torch.bincount(labels, minlength=classes)])
