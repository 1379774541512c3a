"""Jigsaw Clustering (paper §3): split, augment every patch, montage over the global batch; cluster and locate the patches."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from jigclu import augment, random
from jigclu.config import PretrainConfig
from jigclu.data.loader import Batch
from jigclu.losses import clustering_loss, location_loss
from jigclu.montage import exchange, stitch
from jigclu.network import JigCluNetwork
from jigclu.patches import patch_size, split_boxes
from jigclu.training.distributed import Place, gather

OFFICIAL_BASE = 0.07  # the released loss multiplies Eq. 2 by temperature / 0.07 (protocols.md §1.5, D2)


class JigClu:
    """n images -> n montages of m x m patches; m*m*n vectors -> n clusters and m*m positions."""

    def __init__(self, config: PretrainConfig, seed: int, where: Place):
        self.config, self.method, self.seed, self.where = config, config.method, seed, where
        self.m = config.method.m
        self.network = JigCluNetwork(config.backbone, self.m, config.method.dim)
        scaled = config.method.loss_scale == "official"
        self.alpha = config.method.clustering_weight * (config.method.temperature / OFFICIAL_BASE if scaled else 1.0)
        self.beta = config.method.location_weight
        self._boxes = cache(lambda width, height: split_boxes(width, height, self.m, config.method.extend))

    @torch.no_grad()
    def prepare(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, ...]:
        """(montages (n, 3, S, S), permutation (m*m*N,) over the global batch N = n * world)."""
        boxes = torch.tensor([self._boxes(width, height) for height, width in batch.sizes.tolist()])
        parameters = augment.draw(self.config.augment, self.seed, epoch, batch.indices, boxes)
        canvases = batch.canvas.to(self.where.device, non_blocking=True)
        patches = augment.apply(canvases, parameters, patch_size(self.config.image_size, self.m))
        permutation = random.permutation(self.seed, random.MONTAGE, epoch, step, self.where.world * len(patches))
        moved = permutation.to(self.where.device, non_blocking=True)
        montages = stitch(patches, moved, self.m) if self.where.world == 1 else exchange(patches, permutation, self.m)
        return montages.contiguous(memory_format=torch.channels_last), moved

    def loss(self, network: nn.Module, prepared: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Eq. 4 over the global batch, the same on every rank; in float32 whatever the network's precision."""
        montages, permutation = prepared
        embeddings, logits = network(montages)
        with torch.autocast(montages.device.type, enabled=False):
            return self.objective(embeddings.float(), logits.float(), permutation)

    def objective(
        self, embeddings: Tensor, logits: Tensor, permutation: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """embeddings (m*m*n, dim) and logits (m*m*n, m*m) of this rank's montages; permutation (m*m*N,) of the global batch."""
        mm, world = self.m * self.m, self.where.world
        images = len(permutation) // mm
        if world > 1:  # (world, mm * n, dim) -> position-major over the global batch, which is the permutation's order
            embeddings, logits = (
                gather(vectors).view(world, mm, images // world, -1).transpose(0, 1).reshape(mm * images, -1)
                for vectors in (embeddings, logits)
            )
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
        montages = prepared[0].float()
        mean, std = montages.new_tensor(augment.MEAN)[:, None, None], montages.new_tensor(augment.STD)[:, None, None]
        return (montages * std + mean).clamp(0, 1)
