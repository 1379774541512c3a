"""Weighted k-nearest-neighbour vote on frozen features (Wu et al. 2018, as used by MoCo and DINO): the cheap monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jigclu.config import KnnConfig
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.evaluation.extractor import Extractor
from jigclu.evaluation.metrics import accuracy, by_class, write_correct
from jigclu.evaluation.representation import vote
from jigclu.figures.neighbours import draw_evaluation
from jigclu.stages.encoders import frozen_extractor, require_one_process
from jigclu.training.session import Session


def run(config: KnnConfig, folder: str | Path) -> dict[str, Any]:
    """Classify the val split by a vote of the train split's nearest features.

    Args:
        config: the resolved config.
        folder: the job folder, whose upstream is a pretraining, or none for the floor.

    Returns:
        The content of result.json; its metrics are top1 and top5 in percent.

    Raises:
        ConfigError: several ranks were started.
        interrupt.Interrupted: a stop was requested.
        DataError: too many images are unreadable.
    """
    session = Session(folder, config.runtime)
    session.read_config(config)
    require_one_process(session)
    train, val = open_dataset(config.data, "train"), open_dataset(config.data, "val")
    session.read_data(train.fingerprint, val.fingerprint)
    extractor = frozen_extractor(config, session)
    scores, features, truth = vote_on_split(extractor, train, val, config.k, config.temperature)
    right = scores.argmax(1) == truth
    draw_evaluation(session.folder, val, by_class(right, truth, len(val.classes)), features, truth)
    write_correct(session.folder, right)
    return session.finish(accuracy(scores, truth), val_images=len(truth))


def evaluate(
    extractor: Extractor, train: CanvasDataset, val: CanvasDataset, k: int = 20, temperature: float = 0.07
) -> dict[str, float]:
    """Compute {"top1", "top5"} in percent."""
    scores, _, truth = vote_on_split(extractor, train, val, k, temperature)
    return accuracy(scores, truth)


def vote_on_split(
    extractor: Extractor, train: CanvasDataset, val: CanvasDataset, k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute scores (n, classes), features (n, dim) and labels (n,) of the val split."""
    bank, labels = extractor.test_features(train)
    queries, truth = extractor.test_features(val)
    scores = [vote(chunk, bank, labels, len(train.classes), k, temperature) for chunk in queries.split(512)]
    return torch.cat(scores), queries, truth
