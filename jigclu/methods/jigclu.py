"""Jigsaw Clustering (paper §3): split, augment every patch, make montages over the global batch; cluster and locate the patches."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from jigclu import augment, counter_rng
from jigclu.config import PretrainConfig
from jigclu.config.methods import OFFICIAL_BASE, JigCluConfig
from jigclu.data.loader import Batch
from jigclu.figures import first_batch, recovery
from jigclu.losses import clustering_loss, location_loss
from jigclu.methods.base import Logged, Method
from jigclu.montage import exchange, stitch
from jigclu.network import JigCluNetwork
from jigclu.patches import patch_size
from jigclu.training.distributed import RankInfo, gather_batch
from jigclu.training.inputs import Patches


class JigClu(Method):
    """n images -> n montages of m x m patches; m*m*n vectors -> n clusters and m*m positions."""

    network: JigCluNetwork

    def __init__(self, config: PretrainConfig, seed: int, rank_info: RankInfo, classes: int = 0):
        method = config.method
        assert isinstance(method, JigCluConfig)
        self.config, self.method, self.seed, self.rank_info, self.m = config, method, seed, rank_info, method.m
        self.network = JigCluNetwork(config.backbone, self.m, method.dim, montage=method.input == "montage")
        self.patches = Patches(config, method, seed, rank_info.device)
        scaled = method.loss_scale == "official"
        self.alpha = method.clustering_weight * (method.temperature / OFFICIAL_BASE if scaled else 1.0)
        self.beta = method.location_weight

    @torch.no_grad()
    def prepare(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, ...]:
        """(montages (n, 3, S, S), permutation (m*m*N,) over the global batch N = n * world).

        If the input is patches, small or scaled up (§5.1, Figure 5 a and b): (m*m*n, 3, h, h), and nothing is permuted.
        """
        size = self.config.image_size if self.method.input == "scaled" else patch_size(self.config.image_size, self.m)
        images = self.patches(batch, epoch, size)
        length = self.rank_info.world * len(images)
        if self.method.input == "montage":
            permutation = counter_rng.permutation(self.seed, counter_rng.MONTAGE, epoch, step, length)
        else:
            permutation = torch.arange(length)
        on_device = permutation.to(self.rank_info.device, non_blocking=True)
        if self.method.input == "montage":
            alone = self.rank_info.world == 1
            images = stitch(images, on_device, self.m) if alone else exchange(images, permutation, self.m)
        return images.contiguous(memory_format=torch.channels_last), on_device

    def loss(self, network: nn.Module, prepared: tuple[Tensor, ...]) -> tuple[Tensor, Logged]:
        """Eq. 4 over the global batch, the same on every rank; always in float32."""
        images, permutation = prepared
        embeddings, logits = network(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.objective(embeddings.float(), logits.float(), permutation)

    def objective(self, embeddings: Tensor, logits: Tensor, permutation: Tensor) -> tuple[Tensor, Logged]:
        """embeddings (m*m*n, dim) and logits (m*m*n, m*m) of this rank's input; permutation (m*m*N,) of the global batch.

        Both are gathered position-major over the global batch, which is the permutation's order.
        """
        embeddings, logits = (
            gather_batch(vectors, self.m * self.m, self.rank_info) for vectors in (embeddings, logits)
        )
        images = len(permutation) // (self.m * self.m)
        clusters, positions = permutation % images, permutation // images
        clustering = clustering_loss(embeddings, clusters, self.method.temperature)
        location = location_loss(logits, positions)
        total = self.alpha * clustering + self.beta * location
        accuracy = (logits.detach().argmax(1) == positions).float().mean() * 100
        logged = {
            "loss": total,
            "clustering_loss": clustering,
            "location_loss": location,
            "location_accuracy": accuracy,
        }
        return total, {name: value.detach() for name, value in logged.items()}

    def encoder_state_dict(self) -> dict[str, Tensor]:
        return self.network.encoder_state_dict()

    def picture(self, prepared: tuple[Tensor, ...]) -> Tensor:
        return augment.to_pixels(prepared[0])

    def draw_figures(self, batch: Batch, prepared: tuple[Tensor, ...], folder: Path) -> None:
        """montage.png (the network's input), split.png (Figure 3), patches.png (Figures 1 and 6), inputs.png (Figure 5)."""
        first_batch.draw_inputs(self.picture(prepared), folder / "montage.png")
        first_batch.draw_jigsaw(self.patches, batch, folder)

    def final_metrics(self, batch: Batch, epoch: int, folder: Path) -> dict[str, float]:
        """`recovery.recover`: how well the network solves its own task before and after training, if its input is montages."""
        if self.method.input != "montage":
            return {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # as the training does: the same initial weights
            untrained = JigClu(self.config, self.seed, self.rank_info).network.to(self.rank_info.device)
        networks = {"untrained": untrained, "trained": self.network}
        return recovery.recover(networks, self.patches, batch, epoch, self.config.precision == "bfloat16", folder)
