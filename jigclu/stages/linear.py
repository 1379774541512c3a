"""Linear probe (paper §4.1; protocols.md §2.1): several rates on one frozen forward pass, one of them chosen without val."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jigclu.config import ConfigError, LinearConfig
from jigclu.config.sweeps import edge_of_sweep
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.data.order import epoch_groups
from jigclu.evaluation.metrics import accuracy, by_class, write_correct
from jigclu.evaluation.representation import COLLAPSED, represent
from jigclu.evaluation.samples import held_out_tenth
from jigclu.evaluation.transforms import random_crop
from jigclu.figures.neighbours import draw_evaluation
from jigclu.stages.encoders import fresh_classifier, frozen_extractor, require_one_process
from jigclu.training.schedules import steps
from jigclu.training.session import Session, TrainingError

log = logging.getLogger("jigclu")


def run(config: LinearConfig, folder: str | Path) -> dict[str, Any]:
    """Train one linear classifier per learning rate (and weight decay) on frozen features.

    The val split's features are computed once: the backbone is frozen and the test transform is deterministic. Writes
    per_class.csv, neighbours.png and correct.bits.

    Args:
        config: the resolved config.
        folder: the job folder, whose upstream is a pretraining, or none for the floor; resumes from the newest checkpoint.

    Returns:
        The content of result.json. Metrics, accuracies in percent on the val split: `top1` and `top5` of the reported
        classifier; `best_top1` and `last_top1` of its best and its last epoch. `selection: given` reports the best epoch at
        `config.lr`, as the released code does; `held_out` the last epoch at the rate that a held-out tenth of train
        chooses. Beside them knn_top1, alignment, uniformity and rankme of the encoder (evaluation/representation.py).
        `lr`, `weight_decay`: the reported ones; `by_lr`: all rates, with `held_out_top1` where one was chosen.

    Raises:
        ConfigError: several ranks were started, an image is too small for the crop, or no class has an image to hold out.
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


class Setting(NamedTuple):
    """What a classifier is trained with."""

    lr: float
    weight_decay: float


class Probe:
    """Heads, their optimiser, the features they learn from, and each head's best accuracy so far.

    `heads` has a head for each setting, the config's own first, trained on all of train. With `selection: held_out`,
    `selectors` has as many, trained in the same steps on the same batches without the images that are held out: so the
    choice costs no forward pass, and a setting means the same number of steps in both.
    """

    def __init__(self, config: LinearConfig, session: Session, train: CanvasDataset, val: CanvasDataset):
        self.config, self.session, self.train, self.val = config, session, train, val
        self.seed, self.device = session.folder.seed, session.rank_info.device
        self.extractor = frozen_extractor(config, session)
        self._build_heads()
        self.best: list[dict[str, float]] = [{"top1": -1.0, "top5": -1.0, "epoch": -1} for _ in self.settings]
        self.now: list[dict[str, float]] = []
        self.right = torch.zeros(0, dtype=torch.bool)  # (n,) of the first head's best epoch
        session.restore(heads=self.heads, optimizer=self.optimizer)
        if self.selectors:
            session.restore(selectors=self.selectors)
        self.best = session.restored_value("best", self.best)
        self.right = (session.restored or {}).get("right", self.right)  # older checkpoints lack it
        self._compute_features()
        length = len(self.views[0][1]) if self.views else len(train)
        self.steps_per_epoch = -(-length // config.batch_size)
        self.epoch = session.step // self.steps_per_epoch
        session.begin(config.epochs, config.epochs * self.steps_per_epoch, self.state)

    def _build_heads(self) -> None:
        config, classes, dim = self.config, len(self.train.classes), self.extractor.backbone.dim
        rates = dict.fromkeys((config.lr, *config.other_lrs))
        decays = dict.fromkeys((config.weight_decay, *config.other_weight_decays))
        self.settings = [Setting(rate, decay) for rate in rates for decay in decays]
        self.held = torch.zeros(len(self.train), dtype=torch.bool)
        if config.selection == "held_out":
            self.held = held_out_tenth(self.train.labels, self.seed)
            if not self.held.any():
                raise ConfigError(
                    "selection: held_out needs a class with at least two images in train; valid here: given"
                )
        # Every setting starts from the same weights, so that nothing else differs.
        heads = [fresh_classifier(dim, classes, self.seed) for _ in self.settings]
        selectors = [fresh_classifier(dim, classes, self.seed) for _ in self.settings if self.held.any()]
        self.heads, self.selectors = (nn.ModuleList(part).to(self.device) for part in (heads, selectors))
        self.settings_of_groups = self.settings * (2 if selectors else 1)
        self.optimizer = torch.optim.SGD(
            [
                {"params": head.parameters(), **setting._asdict()}
                for head, setting in zip((*self.heads, *self.selectors), self.settings_of_groups, strict=True)
            ],
            momentum=config.momentum,
        )

    def _compute_features(self) -> None:
        config = self.config
        self.truth_features, self.truth = self.extractor.test_features(self.val)
        log.info("val features: %d x %d", *self.truth_features.shape)
        encoder = represent(self.extractor, config, self.train, self.val, self.truth_features, self.truth, self.seed)
        self.of_encoder, self.measured_on = encoder.metrics, encoder.images
        if (rank := self.of_encoder["rankme"]) < COLLAPSED:
            log.warning("collapsed: the val features have an effective rank (RankMe) of %.1f", rank)
        self.moments = moments(encoder.bank) if config.standardize else None
        self.queries = self._scaled(self.truth_features)
        if self.selectors:
            held = self.held.nonzero().flatten().tolist()
            features, self.held_labels = self.extractor.test_features(self.train, held)
            self.held_queries = self._scaled(features)
        self.held = self.held.to(self.device)
        self.views = [self._view(view) for view in range(min(config.views, config.epochs))] if config.views else []

    def _scaled(self, features: Tensor) -> Tensor:
        return features if self.moments is None else (features - self.moments[0]) / self.moments[1]

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        kept = {"best": self.best, "right": self.right, "selectors": self.selectors.state_dict()}
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict(), **kept}

    def _view(self, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features, labels and indices of the whole train split under one drawn augmentation."""
        found = [
            (
                self.extractor(random_crop(self.config, batch.canvas, batch.sizes, batch.indices, self.seed, view)),
                batch.labels,
                batch.indices,
            )
            for batch in self.extractor.batches(self.train, range(len(self.train)))
        ]
        features, labels, indices = map(torch.cat, zip(*found, strict=True))
        return self._scaled(self.extractor.finite(features)), labels.to(self.device), indices.to(self.device)

    def _epoch_features(self, epoch: int, skip: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (features, labels, indices) of the epoch's batches in its order, without the first `skip`."""
        size = self.config.batch_size
        if self.views:
            features, labels, indices = self.views[epoch % len(self.views)]
            for group in epoch_groups(self.seed, epoch, len(labels), size, drop_last=False)[skip:]:
                yield features[group], labels[group], indices[group]
            return
        groups = epoch_groups(self.seed, epoch, len(self.train), size, drop_last=False)[skip:]
        for batch in self.extractor.batches(self.train, [index for group in groups for index in group]):
            images = random_crop(self.config, batch.canvas, batch.sizes, batch.indices, self.seed, epoch)
            yield self._scaled(self.extractor(images)), batch.labels.to(self.device), batch.indices.to(self.device)

    def _losses(self, features: Tensor, labels: Tensor, indices: Tensor) -> list[Tensor]:
        """The loss of each head, then of each selector, over the batch's images that are not held out."""
        found = [F.cross_entropy(head(features), labels) for head in self.heads]
        if self.selectors:
            kept = (~self.held[indices]).float()
            weights = kept / kept.sum().clamp(min=1)
            found += [F.cross_entropy(head(features), labels, reduction="none") @ weights for head in self.selectors]
        return found

    def train_epoch(self, epoch: int) -> None:
        """Train from the current step to the end of the epoch, then validate."""
        for group, setting in zip(self.optimizer.param_groups, self.settings_of_groups, strict=True):
            group["lr"] = steps(setting.lr, epoch, self.config.milestone_epochs, self.config.gamma)
        done = self.session.step % self.steps_per_epoch
        for step, (features, labels, indices) in enumerate(self._epoch_features(epoch, done), done):
            losses = self._losses(features, labels, indices)
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
        """Compute the accuracies on the val split and keep the best of each setting."""
        scores = [head(self.queries) for head in self.heads]
        self.now = [accuracy(head_scores, self.truth) for head_scores in scores]
        if self.now[0]["top1"] > self.best[0]["top1"]:
            self.right = (scores[0].argmax(1) == self.truth).cpu()
        for best, now in zip(self.best, self.now, strict=True):
            if now["top1"] > best["top1"]:
                best.update(now, epoch=epoch)
        by_lr = {
            f"top1.lr{setting.lr:g}": now["top1"]
            for setting, now in zip(self.settings, self.now, strict=True)
            if setting.weight_decay == self.config.weight_decay
        }
        return {**self.now[0], **by_lr}

    @torch.no_grad()
    def rank(self) -> list[int]:
        """The settings' positions, best first: by held-out top-1 (ties: by loss), or as they are if none is held out."""
        order = list(range(len(self.settings)))
        if not self.selectors:
            return order
        scores = [head(self.held_queries) for head in self.selectors]
        self.held_out = [accuracy(head_scores, self.held_labels)["top1"] for head_scores in scores]
        losses = [float(F.cross_entropy(head_scores, self.held_labels)) for head_scores in scores]
        return sorted(order, key=lambda index: (-self.held_out[index], losses[index]))

    def _numbers(self, index: int) -> dict[str, float]:
        """What result.json says of one setting."""
        best, now = self.best[index], self.now[index]
        reported = now if self.selectors else best
        numbers = {"top1": reported["top1"], "top5": reported["top5"], "epoch": best["epoch"]}
        numbers |= {"best_top1": best["top1"], "last_top1": now["top1"]}
        if self.selectors:
            numbers |= {"held_out_top1": self.held_out[index], "weight_decay": self.settings[index].weight_decay}
        return numbers

    @torch.no_grad()
    def finish(self) -> dict[str, Any]:
        """Choose, draw the figures and write correct.bits and result.json; returns the latter's content."""
        order = self.rank()
        first = {self.settings[index].lr: index for index in reversed(order)}  # the best decay of each rate
        by_lr = {f"{lr:g}": self._numbers(first[lr]) for lr in dict.fromkeys(setting.lr for setting in self.settings)}
        chosen = self.settings[order[0]]
        if self.selectors:
            self.right = (self.heads[order[0]](self.queries).argmax(1) == self.truth).cpu()
            log.info("lr %g, weight decay %g are best on %d images held out of train", *chosen, len(self.held_labels))
            if edge := edge_of_sweep(chosen.lr, {setting.lr for setting in self.settings}):
                log.warning(
                    "lr %g is the %s of those tried: a better one may lie outside (linear.other_lrs)", chosen.lr, edge
                )
        reported = by_lr[f"{chosen.lr:g}"]
        metrics = {name: reported[name] for name in ("top1", "top5", "best_top1", "last_top1")}
        counts, truth = torch.zeros(2, len(self.val.classes), dtype=torch.int64), self.truth.cpu()
        if len(self.right):
            counts = by_class(self.right, truth, len(self.val.classes))
            write_correct(self.session.folder, self.right)
        draw_evaluation(self.session.folder, self.val, counts, self.truth_features, self.truth)
        return self.session.finish(
            metrics | self.of_encoder,
            by_lr=by_lr,
            lr=chosen.lr,
            weight_decay=chosen.weight_decay,
            selection=self.config.selection.replace("_", " "),
            measured_on=self.measured_on,
            val_images=len(self.truth),
            images=len(self.train),
            unreadable=sorted(path for counted in self.extractor.unreadable.values() for path in counted.paths),
        )


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of each dimension of (n, dim) features, in float64 inside; 1 for a constant dimension."""
    mean, deviation = features.double().mean(0), features.double().std(0, correction=0)
    constant = deviation <= 1e-6 * mean.abs()
    return mean.float(), deviation.masked_fill(constant, 1.0).float()
