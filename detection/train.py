"""Detectron2's trainer with this suite's step boundary: every iteration ends in `Session.tick`, which logs, saves and stops."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import get_event_storage
from torch import nn

from jigclu import counter_rng
from jigclu.training.session import Session, TrainingError


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generator, with which Detectron2 samples anchors and regions, by these three numbers only."""
    words = counter_rng.philox(
        (torch.tensor(step), torch.tensor(rank), torch.tensor(0), torch.tensor(0)),
        (seed & 0xFFFFFFFF, (seed >> 32) ^ counter_rng.STEP),
    )
    torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


class StepBoundary(HookBase):
    """Seeds torch before an iteration and reports it afterwards. On rank 0 Detectron2's storage has the losses of all ranks."""

    def __init__(self, session: Session, images: int, batch: int):
        self.session, self.images, self.batch = session, images, batch

    def before_step(self) -> None:
        seed_step(self.session.folder.seed, self.session.step, self.session.rank_info.rank)

    def after_step(self) -> None:
        step = self.session.step + 1
        self.session.tick(step * self.batch / self.images, self.batch, self._metrics())

    def _metrics(self) -> dict[str, Any]:
        if not self.session.rank_info.is_main:
            return {}
        latest = {name: value for name, (value, _) in get_event_storage().latest().items()}
        losses = {name: value for name, value in latest.items() if name.startswith("loss_")}
        # d2 does not log the sum of a single loss
        return {"loss": latest.get("total_loss", sum(losses.values())), **losses, "lr": latest["lr"]}


class Training:
    """Trainer, schedule and hooks; `state()` is a checkpoint's content besides the network."""

    def __init__(
        self,
        cfg: CfgNode,
        session: Session,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Generator[Any, None, None],
        images: int,
    ):
        self.cfg, self.session = cfg, session
        self.optimizer, self.scheduler = optimizer, build_lr_scheduler(cfg, optimizer)
        session.restore(optimizer=optimizer, scheduler=self.scheduler)
        self.batches, self.trainer = batches, SimpleTrainer(network, batches, optimizer)
        # The schedule first: a checkpoint saved at the boundary must include its step.
        boundary = StepBoundary(session, images, cfg.SOLVER.IMS_PER_BATCH)
        self.trainer.register_hooks([hooks.LRScheduler(optimizer, self.scheduler), boundary])

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def run(self) -> None:
        """Train from the session's step to the last.

        Raises:
            interrupt.Interrupted: a stop was requested; the state is saved.
            session.TrainingError: the loss is not finite.
        """
        # Closed here: the trainer does not exhaust the stream and is part of a reference cycle, and the stream's workers, which
        # ignore signals, would outlive it until the garbage collector runs.
        with contextlib.closing(self.batches):
            try:
                self.trainer.train(self.session.step, self.cfg.SOLVER.MAX_ITER)
            except FloatingPointError as error:  # d2 checks every iteration's losses before `tick` does
                raise TrainingError(f"non-finite loss at step {self.session.step + 1}: {error}") from None
