"""A frozen encoder's features without a classifier: kNN accuracy, alignment, uniformity and effective rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jigclu.config import ClassifierConfig
from jigclu.config.stages import KNN_IMAGES
from jigclu.data.canvases import CanvasDataset
from jigclu.evaluation.extractor import Extractor
from jigclu.evaluation.metrics import accuracy
from jigclu.evaluation.samples import at_most
from jigclu.evaluation.transforms import random_crop

K, TEMPERATURE = 20, 0.07  # of the vote, as in the stage knn
ALIGNMENT_IMAGES, PAIR_IMAGES = 1000, 10_000  # at most; pairs are all of the latter's
COLLAPSED = 5.0  # a smaller effective rank


class Representation(NamedTuple):
    """`metrics`: knn_top1 (percent), alignment, uniformity, rankme. `images`: how many images each is computed from.

    `bank` (n, dim): features of train images under the test transform, those that vote.
    """

    metrics: dict[str, float]
    images: dict[str, int]
    bank: Tensor


def represent(
    extractor: Extractor,
    config: ClassifierConfig,
    train: CanvasDataset,
    val: CanvasDataset,
    features: Tensor,
    truth: Tensor,
    seed: int,
) -> Representation:
    """Measure an encoder; costs a forward pass over train (at most KNN_IMAGES) and two over ALIGNMENT_IMAGES of val.

    The two views of alignment are the classifier's train crops, the same for every encoder, not its own augmentation.

    Args:
        extractor: the frozen backbone.
        config: with the train transform.
        train: the split whose images vote.
        val: the split that is measured.
        features: (n, dim) features of val under the test transform.
        truth: (n,) their labels.
        seed: of the job; draws the images where there are too many.

    Raises:
        session.TrainingError: a feature is not finite.
        interrupt.Interrupted: a stop was requested.
        DataError: too many images are unreadable.
    """
    bank, labels = extractor.test_features(train, at_most(train.labels, KNN_IMAGES, seed))
    votes = [vote(chunk, bank, labels, len(train.classes), K, TEMPERATURE) for chunk in features.split(512)]
    chosen = at_most(val.labels, ALIGNMENT_IMAGES, seed)
    first, second = (_cropped(extractor, config, val, chosen, seed, view) for view in range(2))
    few = features[at_most(truth.cpu().numpy(), PAIR_IMAGES, seed)]
    metrics = {
        "knn_top1": accuracy(torch.cat(votes), truth)["top1"],
        "alignment": alignment(first, second),
        "uniformity": uniformity(few),
        "rankme": rankme(few),
    }
    images = {"knn_top1": len(bank), "alignment": len(first), "uniformity": len(few), "rankme": len(few)}
    return Representation(metrics, images, bank)


def _cropped(
    extractor: Extractor, config: ClassifierConfig, dataset: CanvasDataset, chosen: list[int], seed: int, view: int
) -> Tensor:
    return extractor.finite(
        torch.cat(
            [
                extractor(random_crop(config, batch.canvas, batch.sizes, batch.indices, seed, view))
                for batch in extractor.batches(dataset, chosen)
            ]
        )
    )


def vote(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Score classes by a weighted vote of the nearest neighbours (Wu et al. 2018, as used by MoCo and DINO).

    Args:
        queries: (q, dim) features.
        bank: (n, dim) features of the images that vote.
        labels: (n,) their classes.
        classes: number of classes.
        k: neighbours by cosine similarity that vote.
        temperature: each votes exp(similarity / temperature).

    Returns:
        (q, classes) scores.
    """
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    nearest, indices = similarity.topk(min(k, len(bank)), dim=1)
    return queries.new_zeros(len(queries), classes).scatter_add_(1, labels[indices], (nearest / temperature).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of two views of an image: mean_i |u_i - v_i|^2 (Wang & Isola 2020, Eq. 4 with alpha = 2).

    first, second: (n, dim) features, normalised here. From 0 (equal) to 4 (opposite); the smaller, the more invariant.
    """
    return float((_unit(first) - _unit(second)).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """log mean_{i<j} exp(-2 |u_i - u_j|^2) (Wang & Isola 2020, Eq. 5 with t = 2), over all pairs of two images.

    features: (n, dim), normalised here. At most 0 (all equal, or one image); the smaller, the more evenly spread. Random
    directions in many dimensions have about -4.
    """
    unit = _unit(features)
    squares, total = unit.square().sum(1), torch.zeros((), dtype=torch.float64, device=unit.device)
    for chunk, square in zip(unit.split(512), squares.split(512), strict=True):
        distances = (square[:, None] + squares - 2 * chunk @ unit.T).clamp(min=0)
        total += (-2 * distances).exp().sum()
    count = len(unit)
    if count < 2:
        return 0.0
    return float(((total - count) / (count * (count - 1))).log())  # without the images' distances to themselves


def rankme(features: Tensor) -> float:
    """Effective rank exp(-sum_k p_k log p_k), p_k = s_k / sum(s) + 1e-7 of the singular values s (RankMe; Garrido et al. 2023).

    features: (n, dim), as they are. From 1 (all on one line) to min(n, dim).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny) + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


def _unit(features: Tensor) -> Tensor:
    """In float64: the features of an untrained network differ in late digits only."""
    return F.normalize(features.double(), dim=1)
