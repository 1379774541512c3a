"""Weighted k-nearest-neighbour vote on frozen features (Wu et al. 2018, as used by MoCo and DINO): the cheap monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jigclu.config import KnnConfig
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.evaluation.extractor import Extractor
from jigclu.evaluation.metrics import accuracy, by_class
from jigclu.figures.neighbours import show
from jigclu.stages.encoders import frozen_extractor, require_one_process
from jigclu.training.session import Session


def run(config: KnnConfig, folder: str | Path) -> dict[str, Any]:
    """Vote of the train split's features on the val split's; metrics top1, top5 in percent."""
    session = Session(folder, config.runtime)
    require_one_process(session)
    train, val = open_dataset(config.data, "train"), open_dataset(config.data, "val")
    session.folder.update_job(data_fingerprint=f"{train.fingerprint}+{val.fingerprint}")
    extractor = frozen_extractor(config, session)
    scores, features, truth = voted(extractor, train, val, config.k, config.temperature)
    show(session.folder, val, by_class(scores.argmax(1) == truth, truth, len(val.classes)), features, truth)
    return session.finish(accuracy(scores, truth), val_images=len(val))


def evaluate(
    extractor: Extractor, train: CanvasDataset, val: CanvasDataset, k: int = 20, temperature: float = 0.07
) -> dict[str, float]:
    """{"top1", "top5"} in percent."""
    scores, _, truth = voted(extractor, train, val, k, temperature)
    return accuracy(scores, truth)


def voted(
    extractor: Extractor, train: CanvasDataset, val: CanvasDataset, k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the val split: scores (n, classes), features (n, dim), labels (n,)."""
    bank, labels = extractor.test_features(train)
    queries, truth = extractor.test_features(val)
    scores = [vote(chunk, bank, labels, len(train.classes), k, temperature) for chunk in queries.split(512)]
    return torch.cat(scores), queries, truth


def vote(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """(q, dim), (n, dim), (n,) -> (q, classes): each of the k nearest by cosine votes exp(similarity / temperature)."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    nearest, places = similarity.topk(min(k, len(bank)), dim=1)
    return queries.new_zeros(len(queries), classes).scatter_add_(1, labels[places], (nearest / temperature).exp())
