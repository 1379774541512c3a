"""Pretraining by any method (paper §4): SGD, a rate per epoch, checkpoints at any step, encoder.pt at the end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from jigclu import methods
from jigclu.config import KnnConfig, PretrainConfig
from jigclu.config.compute import cost_metrics
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.data.loader import Batch, Unreadable, batches, loader_workers
from jigclu.data.order import epoch_groups
from jigclu.evaluation.extractor import Extractor
from jigclu.network import load_encoder
from jigclu.stages.knn import evaluate
from jigclu.training.checkpoint import save_atomic
from jigclu.training.distributed import distribute
from jigclu.training.prefetch import Prepared, prefetched
from jigclu.training.schedules import cosine, steps
from jigclu.training.session import Session
from jigclu.training.usage import peak_memory_mb

log = logging.getLogger("jigclu")
STARVED = 0.1  # above this share of the training time spent waiting for the loader, the loader is the limiter
SAMPLES = 64  # validation images for the method's final metrics


def run(config: PretrainConfig, folder: str | Path) -> dict[str, Any]:
    """Pretrain in a job folder; resumes from the newest checkpoint.

    Writes encoder.pt (torchvision's key names, loads with weights_only) and the method's figures of the first batch.

    Args:
        config: the resolved config.
        folder: the job folder; the seed is in its job.json.

    Returns:
        The content of result.json. Its metrics are the last step's, the method's `final_metrics`, and: `hours` in training
        over all attempts; `peak_memory_mb`, in MiB, the peak on rank 0 over all attempts (`memory_kind`: device or resident);
        `chance_loss`, the method's loss of a network that tells nothing apart;
        `loader_wait`, the share (0 to 1) of that time in which the loop waited for the loader. On a GPU the loop runs ahead of
        the device, so `loader_wait` is an upper bound of the device's idle time. `limiter`: loader or compute. What was
        computed, counted from the config (config/compute.py): `forwards`, `gmac`, `images_seen`.

    Raises:
        interrupt.Interrupted: a stop was requested; the state is saved.
        session.TrainingError: the loss is not finite.
        DataError: too many images are unreadable.
        ConfigError: the method's settings do not fit the batch size or the number of ranks.
    """
    session = Session(folder, config.runtime)
    session.read_config(config)
    crop_side = math.sqrt(
        config.augment.crop_scale[0] * min(config.augment.crop_ratio[0], 1 / config.augment.crop_ratio[1])
    )
    dataset = open_dataset(config.data, "train", smallest=config.method.smallest_image(crop_side))
    session.read_data(dataset.fingerprint)
    trainer = Trainer(config, session, dataset)
    while trainer.epoch < config.epochs:
        trainer.train_epoch()
    return trainer.finish()


def rate(config: PretrainConfig, epoch: int) -> float:
    """Compute the learning rate in `epoch`, counted from 0."""
    if config.schedule == "steps":
        return steps(config.optimizer.lr, epoch, config.milestone_epochs)
    return cosine(config.optimizer.lr, epoch, config.epochs)


class Trainer:
    """The loop's state: method, network, optimiser and the current step."""

    def __init__(self, config: PretrainConfig, session: Session, dataset: CanvasDataset):
        self.config, self.session, self.dataset = config, session, dataset
        self.val: CanvasDataset | None = None  # the monitor's
        self.seed, self.rank_info = session.folder.seed, session.rank_info
        torch.manual_seed(self.seed)
        self.method = methods.build(config, self.seed, self.rank_info, len(dataset.classes))
        network = self.method.network.to(self.rank_info.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        session.restore(network=network)
        self.network = distribute(network, self.rank_info)
        # All parameters, biases and BN included, decay alike (protocols.md §1.7).
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            config.optimizer.lr,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        )
        session.restore(optimizer=self.optimizer)
        self.steps_per_epoch = len(epoch_groups(self.seed, 0, len(dataset), config.batch_size))
        self.last: dict[str, Any] = {}
        restored = session.restored or {}
        self.waited, self.memory_before = restored.get("waited", 0.0), restored.get("peak_memory_mb", 0.0)
        self.unreadable = Unreadable(restored.get("unreadable", []))
        session.begin(config.epochs, config.epochs * self.steps_per_epoch, self.state)

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        return {
            "network": self.method.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "waited": self.waited,
            "peak_memory_mb": self.peak_memory_mb,
            "unreadable": self.unreadable.paths,
        }

    @property
    def peak_memory_mb(self) -> float:
        """Peak over all attempts, in MiB."""
        return max(self.memory_before, peak_memory_mb(self.rank_info.device))

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.session.step // self.steps_per_epoch

    def train_epoch(self) -> None:
        """Train from the current step to the end of its epoch."""
        config, epoch = self.config, self.epoch
        done = self.session.step % self.steps_per_epoch
        lr = rate(config, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        groups = epoch_groups(
            self.seed, epoch, len(self.dataset), config.batch_size, rank=self.rank_info.rank, world=self.rank_info.world
        )
        workers = loader_workers(config.runtime, self.rank_info.device)
        self.network.train()
        device = self.rank_info.device
        stream = batches(self.dataset, groups[done:], workers, self.unreadable, substitute=True, device=device)

        def prepare(batch: Batch, step: int) -> Prepared:
            return self.method.prepare(batch, epoch, step)

        for step, batch, prepared in prefetched(self.timed(stream), prepare, device, done):
            if self.session.step == 0 and self.rank_info.is_main:
                self.method.draw_figures(batch, prepared, self.session.folder.path / "figures")
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss, self.last = self.method.loss(self.network, prepared)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            watched = self.monitor(epoch) if step + 1 == self.steps_per_epoch else {}
            self.session.tick(
                epoch + (step + 1) / self.steps_per_epoch,
                config.batch_size,
                {**self.last, "lr": lr, **watched},
                due=bool(watched),
            )

    def timed(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the same batches, adding the time that the loop waits for them to `waited`."""
        while True:
            start = time.monotonic()
            batch = next(stream, None)
            self.waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def monitor(self, epoch: int) -> dict[str, float]:
        """Measure the encoder's current kNN accuracy every `runtime.monitor_every` epochs. Changes no training state."""
        every = self.config.runtime.monitor_every
        if not every or (epoch + 1) % every or not self.rank_info.is_main:
            return {}
        shared = self.config.model_dump(include={"data", "backbone", "image_size", "precision", "runtime"})
        config = KnnConfig(**shared, resize=self.config.image_size * 8 // 7)  # the ratio 256 / 224
        backbone = load_encoder(config.backbone, self.method.encoder_state_dict())
        extractor = Extractor(backbone, config, self.rank_info.device)
        self.val = self.val or open_dataset(config.data, "val")
        return {"knn_top1": evaluate(extractor, self.dataset, self.val)["top1"]}

    def finish(self) -> dict[str, Any]:
        """Write encoder.pt and result.json (rank 0); returns the content of the latter."""
        seconds = self.session.seconds  # before anything below takes time
        self.session.require_finite()
        wait = self.waited / seconds
        metrics = {name: float(value) for name, value in self.last.items()}
        if chance := self.config.method.chance_loss(self.config.batch_size):
            metrics["chance_loss"] = chance
        metrics |= {"hours": seconds / 3600, "peak_memory_mb": self.peak_memory_mb, "loader_wait": wait}
        metrics |= cost_metrics(self.config, self.config.epochs * self.steps_per_epoch * self.config.batch_size)
        if not self.rank_info.is_main:
            return {"metrics": metrics}
        self.save_encoder()
        metrics |= self.final_metrics()
        return self.session.finish(
            metrics,
            images=len(self.dataset),
            steps=self.session.steps,
            unreadable=sorted(self.unreadable.paths),
            precision=self.config.precision,
            limiter="loader" if wait > STARVED else "compute",
            memory_kind="device" if self.rank_info.device.type == "cuda" else "resident",
        )

    def save_encoder(self) -> None:
        """Write encoder.pt, on the CPU."""
        weights = {key: value.cpu() for key, value in self.method.encoder_state_dict().items()}
        save_atomic(self.session.folder.path / "encoder.pt", weights)

    def final_metrics(self) -> dict[str, float]:
        """Compute the method's metrics of the trained network, on validation images drawn at random from the split."""
        config = self.config
        try:
            self.val = self.val or open_dataset(config.data, "val")
            indices = epoch_groups(self.seed, config.epochs, len(self.val), min(SAMPLES, len(self.val)))[0]
            batch = next(batches(self.val, [indices], 0, Unreadable(), substitute=True))
            return self.method.final_metrics(batch, config.epochs, self.session.folder.path / "figures")
        except Exception as error:  # a figure that fails must not lose the training
            log.warning("the method's final metrics were not computed: %s", error)
            return {}
