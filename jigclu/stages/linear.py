"""Linear probe (paper §4.1; protocols.md §2.1): several learning rates on one frozen forward pass, each reported."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jigclu.config import LinearConfig
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.data.order import epoch_groups
from jigclu.evaluation.metrics import accuracy, by_class
from jigclu.evaluation.transforms import random_crop
from jigclu.figures.neighbours import draw_evaluation
from jigclu.stages.encoders import fresh_classifier, frozen_extractor, require_one_process
from jigclu.training.schedules import steps
from jigclu.training.session import Session, TrainingError

log = logging.getLogger("jigclu")


def run(config: LinearConfig, folder: str | Path) -> dict[str, Any]:
    """Train one linear classifier per learning rate on frozen features.

    The val split's features are computed once: the backbone is frozen and the test transform is deterministic. Writes
    per_class.csv and neighbours.png.

    Args:
        config: the resolved config.
        folder: the job folder, whose upstream is a pretraining, or none for the floor; resumes from the newest checkpoint.

    Returns:
        The content of result.json. Metrics, in percent, of the classifier at `config.lr`: top1 and top5 of the best epoch on the
        val split, as the protocol reports, and `last_top1`. `by_lr` has all learning rates.

    Raises:
        ConfigError: several ranks were started, or an image is too small for the crop.
        interrupt.Interrupted: a stop was requested; the state is saved.
        session.TrainingError: the loss is not finite, or the backbone changed.
        DataError: too many images are unreadable.
    """
    session = Session(folder, config.runtime)
    session.read_config(config)
    require_one_process(session)
    train, val = open_dataset(config.data, "train"), open_dataset(config.data, "val")
    session.read_data(train.fingerprint, val.fingerprint)
    probe = Probe(config, session, train, val)
    before = fingerprint(probe.extractor.backbone)
    for epoch in range(probe.epoch, config.epochs):
        probe.train_epoch(epoch)
    if fingerprint(probe.extractor.backbone) != before:
        raise TrainingError("the frozen backbone changed during the probe")
    return probe.finish()


def fingerprint(backbone: nn.Module) -> list[float]:
    """Sum each tensor of the state, to notice a change."""
    return [float(value.double().sum()) for value in backbone.state_dict().values()]


class Probe:
    """Heads, their optimiser, the features they learn from, and each head's best accuracy so far."""

    def __init__(self, config: LinearConfig, session: Session, train: CanvasDataset, val: CanvasDataset):
        self.config, self.session, self.train, self.val = config, session, train, val
        self.seed, self.device = session.folder.seed, session.rank_info.device
        self.extractor = frozen_extractor(config, session)
        self.rates = [config.lr, *(rate for rate in config.other_lrs if rate != config.lr)]
        # Every learning rate starts from the same weights, so that only the rate differs.
        heads = [fresh_classifier(self.extractor.backbone.dim, len(train.classes), self.seed) for _ in self.rates]
        self.heads = nn.ModuleList(heads).to(self.device)
        self.optimizer = torch.optim.SGD(
            [{"params": head.parameters(), "lr": rate} for head, rate in zip(self.heads, self.rates, strict=True)],
            momentum=config.momentum, weight_decay=config.weight_decay,
        )  # fmt: skip
        self.best: list[dict[str, float]] = [{"top1": -1.0, "top5": -1.0, "epoch": -1} for _ in self.rates]
        self.now: list[dict[str, float]] = []
        self.classes = torch.zeros(2, len(train.classes), dtype=torch.int64)  # of the reported rate's best epoch
        self.epoch = 0
        session.restore(heads=self.heads, optimizer=self.optimizer)
        self.best = session.restored_value("best", self.best)
        self.classes = (session.restored or {}).get("classes", self.classes)  # older checkpoints lack it
        self.truth_features, self.truth = self.extractor.test_features(val)
        log.info("val features: %d x %d", *self.truth_features.shape)
        self.views = [self._view(view) for view in range(min(config.views, config.epochs))] if config.views else []
        length = len(self.views[0][1]) if self.views else len(train)
        self.steps_per_epoch = -(-length // config.batch_size)
        self.epoch = session.step // self.steps_per_epoch
        session.begin(config.epochs, config.epochs * self.steps_per_epoch, self.state)

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        kept = {"best": self.best, "classes": self.classes}
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict(), **kept}

    def _view(self, view: int) -> tuple[Tensor, Tensor]:
        """Features and labels of the whole train split under one drawn augmentation."""
        pairs = [
            (
                self.extractor(random_crop(self.config, batch.canvas, batch.sizes, batch.indices, self.seed, view)),
                batch.labels,
            )
            for batch in self.extractor.batches(self.train, range(len(self.train)))
        ]
        features = self.extractor.finite(torch.cat([features for features, _ in pairs]))
        return features, torch.cat([labels for _, labels in pairs]).to(self.device)

    def _epoch_features(self, epoch: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (features, labels) of the epoch's batches in its order, without the first `skip`."""
        size = self.config.batch_size
        if self.views:
            features, labels = self.views[epoch % len(self.views)]
            for group in epoch_groups(self.seed, epoch, len(labels), size, drop_last=False)[skip:]:
                yield features[group], labels[group]
            return
        groups = epoch_groups(self.seed, epoch, len(self.train), size, drop_last=False)[skip:]
        for batch in self.extractor.batches(self.train, [index for group in groups for index in group]):
            images = random_crop(self.config, batch.canvas, batch.sizes, batch.indices, self.seed, epoch)
            yield self.extractor(images), batch.labels.to(self.device)

    def train_epoch(self, epoch: int) -> None:
        """Train from the current step to the end of the epoch, then validate."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = steps(rate, epoch, self.config.milestone_epochs, self.config.gamma)
        done = self.session.step % self.steps_per_epoch
        for step, (features, labels) in enumerate(self._epoch_features(epoch, done), done):
            losses = [F.cross_entropy(head(features), labels) for head in self.heads]
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()  # the heads share nothing: each gets its own gradient
            self.optimizer.step()
            # Before the tick, so that a checkpoint saved there has the epoch's accuracy.
            measured = self.validate(epoch) if step + 1 == self.steps_per_epoch else {}
            self.session.tick(
                epoch + (step + 1) / self.steps_per_epoch,
                len(labels),
                {"loss": losses[0].detach(), **measured},
                due=bool(measured),
            )

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Compute the accuracies on the val split and keep the best of each learning rate."""
        scores = [head(self.truth_features) for head in self.heads]
        self.now = [accuracy(head_scores, self.truth) for head_scores in scores]
        if self.now[0]["top1"] > self.best[0]["top1"]:
            self.classes = by_class(scores[0].argmax(1) == self.truth, self.truth, len(self.val.classes)).cpu()
        for best, now in zip(self.best, self.now, strict=True):
            if now["top1"] > best["top1"]:
                best.update(now, epoch=epoch)
        by_lr = {f"top1.lr{rate:g}": now["top1"] for rate, now in zip(self.rates, self.now, strict=True)}
        return {**self.now[0], **by_lr}

    def finish(self) -> dict[str, Any]:
        """Draw the figures and write result.json; returns its content."""
        by_lr = {
            f"{rate:g}": {**best, "last_top1": now["top1"]}
            for rate, best, now in zip(self.rates, self.best, self.now, strict=True)
        }
        reported = by_lr[f"{self.config.lr:g}"]
        metrics = {name: reported[name] for name in ("top1", "top5", "last_top1")}
        draw_evaluation(self.session.folder, self.val, self.classes, self.truth_features, self.truth)
        unreadable = sorted(path for counted in self.extractor.unreadable.values() for path in counted.paths)
        counts = {"val_images": len(self.truth), "images": len(self.train), "unreadable": unreadable}
        return self.session.finish(metrics, by_lr=by_lr, lr=self.config.lr, **counts)
