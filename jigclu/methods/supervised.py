"""Cross-entropy with the labels, on one augmented view per image: the paper's `Supervised` rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jigclu import augment
from jigclu.config import PretrainConfig
from jigclu.data.loader import Batch
from jigclu.losses import top1_percent_strict
from jigclu.methods.base import Logged, Method
from jigclu.network import EncoderWithHead
from jigclu.training.distributed import RankInfo, gather_batch
from jigclu.training.inputs import views


class Supervised(Method):
    """n images -> n views -> n x `classes` logits."""

    network: EncoderWithHead

    def __init__(self, config: PretrainConfig, seed: int, rank_info: RankInfo, classes: int):
        self.config, self.seed, self.rank_info = config, seed, rank_info
        self.network = EncoderWithHead(config.backbone, classes, "linear")

    @torch.no_grad()
    def prepare(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, ...]:
        """(views (n, 3, S, S), labels (n,))."""
        images = views(self.config, 1, batch, self.seed, epoch, self.rank_info.device)
        return images, batch.labels.to(self.rank_info.device, non_blocking=True)

    def loss(self, network: nn.Module, prepared: tuple[Tensor, ...]) -> tuple[Tensor, Logged]:
        """Cross-entropy over the global batch, in float32."""
        images, labels = prepared
        logits = network(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.objective(logits.float(), labels)

    def objective(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Logged]:
        """logits (n, classes) and labels (n,) of this rank. `accuracy`: top-1 on the training views, in percent."""
        logits, labels = (gather_batch(values, 1, self.rank_info) for values in (logits, labels))
        total = F.cross_entropy(logits, labels)
        return total, {"loss": total.detach(), "accuracy": top1_percent_strict(logits.detach(), labels)}

    def encoder_state_dict(self) -> dict[str, Tensor]:
        return self.network.encoder.weights()

    def picture(self, prepared: tuple[Tensor, ...]) -> Tensor:
        return augment.to_pixels(prepared[0])
