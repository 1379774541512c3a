"""Accuracy: hits, top-1, per-class counts, and which images are right."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jigclu.files import write_atomic
from jigclu.job_folder import JobFolder


def hits(scores: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> Tensor:
    """How many rows of (n, classes) scores have their label among the k best, (len(ks),) float64; k is capped at the classes."""
    top = scores.topk(min(max(ks), scores.shape[1]), dim=1).indices
    matches = top == labels[:, None]
    return torch.stack([matches[:, :k].any(dim=1).double().sum() for k in ks])


def accuracy(scores: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """{"top1": percent, "top5": percent} of (n, classes) scores; k is capped at the number of classes."""
    counts = hits(scores, labels, ks).tolist()
    return {f"top{k}": 100 * (count / len(labels)) for k, count in zip(ks, counts, strict=True)}


def by_class(right: Tensor, labels: Tensor, classes: int) -> Tensor:
    """right (n,) bool and labels (n,) -> (2, classes) int64: the correct images and all images of each class."""
    return torch.stack([torch.bincount(labels[right], minlength=classes), torch.bincount(labels, minlength=classes)])


def write_correct(folder: JobFolder, right: Tensor) -> None:
    """Write `correct.bits`: right (n,) bool, in the split's order without unreadable images, as numpy.packbits packs it.

    n is `val_images` in result.json: `numpy.unpackbits(bits, count=n)`. Two checkpoints can be compared image by image.
    """
    write_atomic(folder.path / "correct.bits", np.packbits(right.cpu().numpy()).tobytes())
