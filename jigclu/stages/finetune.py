"""Fine-tuning (paper §4.2, §4.3; protocols.md §2.4, §2.5): backbone and a fresh classifier trained together on labels."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from jigclu.config import ConfigError, FinetuneConfig
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.data.loader import Unreadable, batches, loader_workers
from jigclu.data.order import epoch_groups
from jigclu.evaluation.metrics import by_class, hits, write_correct
from jigclu.evaluation.transforms import centre_crop, random_crop
from jigclu.figures.neighbours import draw_evaluation
from jigclu.stages.encoders import fresh_classifier, starting_backbone
from jigclu.training.distributed import RankInfo, distribute
from jigclu.training.schedules import cosine, steps
from jigclu.training.session import Session


def run(config: FinetuneConfig, folder: str | Path) -> dict[str, Any]:
    """Train backbone and classifier from the upstream encoder, or from the seed's random weights.

    Args:
        config: the resolved config.
        folder: the job folder, whose upstream is a pretraining, or none; resumes from the newest checkpoint.

    Returns:
        The content of result.json. Metrics: top1 and top5 (percent) of the validated epoch with the best top1 on the val split,
        as the released code reports; last_top1; best_epoch, counted in epochs trained.

    Raises:
        ConfigError: the images do not fill a batch, or the batch is not divisible by the ranks.
        interrupt.Interrupted: a stop was requested; the state is saved.
        session.TrainingError: the loss is not finite.
        DataError: too many images are unreadable.
    """
    session = Session(folder, config.runtime)
    session.read_config(config)
    train, val = open_dataset(config.data, "train"), open_dataset(config.data, "val")
    session.read_data(train.fingerprint, val.fingerprint)
    tuner = Finetuner(config, session, train, val)
    while tuner.epoch < config.epochs:
        tuner.train_epoch()
    return tuner.finish()


def rate(config: FinetuneConfig, base: float, epoch: int) -> float:
    """Compute a parameter group's learning rate in `epoch` from its own base (golden g7)."""
    if config.schedule == "cosine":
        return cosine(base, epoch, config.epochs)
    return steps(base, epoch, config.milestone_epochs, config.gamma)


class Finetuner:
    """Network, optimiser, the current step, and the best accuracy so far."""

    def __init__(self, config: FinetuneConfig, session: Session, train: CanvasDataset, val: CanvasDataset):
        self.config, self.session, self.train, self.val = config, session, train, val
        self.seed, self.rank_info = session.folder.seed, session.rank_info
        self.steps_per_epoch = len(self._groups(0))
        images, side = config.batch_size // self.rank_info.world, -(-config.image_size // 32)  # of the last map
        if images * side * side < 2:
            raise ConfigError(
                f"batch_size {config.batch_size} on {self.rank_info.world} rank(s) at image_size {config.image_size} gives batch "
                "norm one value per channel; raise one of the two"
            )
        backbone = starting_backbone(config, session)
        head = fresh_classifier(backbone.dim, len(train.classes), self.seed)
        model = nn.Sequential(OrderedDict(backbone=backbone, head=head))
        self.model = model.to(self.rank_info.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        session.restore(network=self.model)
        self.network = distribute(self.model, self.rank_info)
        self.bases = (config.lr, config.head_lr or config.lr)
        self.optimizer = torch.optim.SGD(
            [
                {"params": part.parameters(), "lr": base}
                for part, base in zip(self.model.children(), self.bases, strict=True)
            ],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.best: dict[str, float] = {"top1": -1.0, "top5": -1.0, "epoch": -1}
        self.now: dict[str, float] = {}
        self.outcomes = self.outcomes_now = torch.zeros(0, dtype=torch.uint8)  # of the best epoch
        session.restore(optimizer=self.optimizer)
        self.best = session.restored_value("best", self.best)
        self.outcomes = (session.restored or {}).get("outcomes", self.outcomes)  # older checkpoints lack it
        broken = (session.restored or {}).get("unreadable", {})
        self.unreadable = {split: Unreadable(broken.get(split, [])) for split in ("train", "val")}
        self.validated = 0  # images
        session.begin(config.epochs, config.epochs * self.steps_per_epoch, self.state)

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        broken = {split: unreadable.paths for split, unreadable in self.unreadable.items()}
        kept = {"best": self.best, "outcomes": self.outcomes, "unreadable": broken}
        return {"network": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), **kept}

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.session.step // self.steps_per_epoch

    def _groups(self, epoch: int) -> list[list[int]]:
        rank_info, size = self.rank_info, self.config.batch_size
        return epoch_groups(self.seed, epoch, len(self.train), size, rank=rank_info.rank, world=rank_info.world)

    def train_epoch(self) -> None:
        """Train from the current step to the end of its epoch, then validate if that is due."""
        config, epoch = self.config, self.epoch
        done = self.session.step % self.steps_per_epoch
        for group, base in zip(self.optimizer.param_groups, self.bases, strict=True):
            group["lr"] = rate(config, base, epoch)
        lr, head_lr = (group["lr"] for group in self.optimizer.param_groups)
        workers = loader_workers(config.runtime, self.rank_info.device)
        self.network.train()  # batch norm learns too (protocols.md §2.4)
        groups = self._groups(epoch)[done:]
        device = self.rank_info.device
        stream = batches(self.train, groups, workers, self.unreadable["train"], substitute=True, device=device)
        for step, batch in enumerate(stream, done):
            canvas = batch.canvas.to(self.rank_info.device, non_blocking=True)
            images = random_crop(config, canvas, batch.sizes, batch.indices, self.seed, epoch)
            loss = F.cross_entropy(self._scores(self.network, images), batch.labels.to(self.rank_info.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            # Before the tick, so that a checkpoint saved there has the epoch's accuracy.
            measured = self._validate_if_due(epoch) if step + 1 == self.steps_per_epoch else {}
            self.session.tick(
                epoch + (step + 1) / self.steps_per_epoch,
                config.batch_size,
                {
                    "loss": _total(loss.detach(), self.rank_info) / self.rank_info.world,
                    "lr": lr,
                    "head_lr": head_lr,
                    **measured,
                },
                due=bool(measured),
            )

    def _scores(self, network: nn.Module, images: Tensor) -> Tensor:
        """(N, 3, h, w) normalised -> (N, classes) float32."""
        with torch.autocast(self.rank_info.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return network(images.contiguous(memory_format=torch.channels_last)).float()

    def _validate_if_due(self, epoch: int) -> dict[str, float]:
        trained = epoch + 1
        if trained % self.config.validate_every and trained != self.config.epochs:
            return {}
        self.now = self.validate()
        if self.now["top1"] > self.best["top1"]:
            self.best, self.outcomes = {**self.now, "epoch": trained}, self.outcomes_now
        return self.now

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Compute {"top1", "top5"} in percent on the val split, each rank on its share of the images."""
        config, rank_info = self.config, self.rank_info
        local = max(1, config.batch_size // rank_info.world)
        share = range(rank_info.rank, len(self.val), rank_info.world)
        groups = [list(share[start : start + local]) for start in range(0, len(share), local)]
        self.model.eval()
        found = torch.zeros(3, dtype=torch.float64, device=rank_info.device)  # in the top 1, in the top 5, images
        outcomes = torch.zeros(
            len(self.val), dtype=torch.uint8, device=rank_info.device
        )  # 2: right, 1: wrong, 0: unreadable
        workers = loader_workers(config.runtime, rank_info.device)
        for batch in batches(
            self.val, groups, workers, self.unreadable["val"], substitute=False, device=rank_info.device
        ):
            if not len(batch.labels):
                continue
            canvas = batch.canvas.to(rank_info.device, non_blocking=True)
            scores = self._scores(self.model, centre_crop(canvas, batch.sizes, config.resize, config.image_size))
            labels = batch.labels.to(rank_info.device)
            found[:2] += hits(scores, labels)
            found[2] += len(labels)
            outcomes[batch.indices.to(rank_info.device)] = 1 + (scores.argmax(1) == labels).byte()
            if rank_info.is_main:
                self.session.folder.set_status("running", force=False)  # the heartbeat of a long validation
        self.outcomes_now = _total(outcomes, rank_info).cpu()
        top1, top5, count = _total(found, rank_info).tolist()
        self.validated = int(count)
        return {"top1": 100 * (top1 / count), "top5": 100 * (top5 / count)}

    def finish(self) -> dict[str, Any]:
        """Draw the figures and write correct.bits and result.json (rank 0); returns the latter's content."""
        metrics = {"top1": self.best["top1"], "top5": self.best["top5"]}
        metrics |= {"last_top1": self.now["top1"], "best_epoch": self.best["epoch"]}
        if self.rank_info.is_main and len(self.outcomes):
            read = self.outcomes > 0
            right, labels = self.outcomes[read] == 2, torch.from_numpy(self.val.labels)[read]
            write_correct(self.session.folder, right)
            draw_evaluation(self.session.folder, self.val, by_class(right, labels, len(self.val.classes)))
        return self.session.finish(
            metrics,
            val_images=self.validated,
            images=len(self.train),
            unreadable=sorted(path for counted in self.unreadable.values() for path in counted.paths),
            lr=self.config.lr,
            head_lr=self.bases[1],
            precision=self.config.precision,
        )


def _total(values: Tensor, rank_info: RankInfo) -> Tensor:
    """Sum over all ranks, in place; every rank gets the sum."""
    if rank_info.world > 1:
        dist.all_reduce(values)
    return values
