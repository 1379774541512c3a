"""SimCLR (Chen et al. 2020): two views of every image; each must find the other among all views of the global batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jigclu import augment
from jigclu.config import PretrainConfig
from jigclu.config.methods import SimCLRConfig
from jigclu.data.loader import Batch
from jigclu.losses import clustering_loss, top1_percent_strict
from jigclu.methods.base import Logged, Method
from jigclu.network import EncoderWithHead
from jigclu.training.distributed import RankInfo, gather_batch
from jigclu.training.inputs import views


class SimCLR(Method):
    """n images -> 2n views -> 2n vectors.

    Its loss, NT-Xent, is JigClu's Eq. 1-2 with clusters of two: the mean over the 2N views of -log softmax, over all other views,
    of the cosine with the image's other view. So `clustering_loss` serves both.
    """

    network: EncoderWithHead

    def __init__(self, config: PretrainConfig, seed: int, rank_info: RankInfo, classes: int = 0):
        assert isinstance(config.method, SimCLRConfig)
        self.config, self.method, self.seed, self.rank_info = config, config.method, seed, rank_info
        self.network = EncoderWithHead(config.backbone, config.method.dim, config.method.head)

    @torch.no_grad()
    def prepare(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, ...]:
        """(views (2n, 3, S, S),), the first of every image, then the second."""
        return (views(self.config, 2, batch, self.seed, epoch, self.rank_info.device),)

    def loss(self, network: nn.Module, prepared: tuple[Tensor, ...]) -> tuple[Tensor, Logged]:
        """NT-Xent over the global batch, in float32."""
        embeddings = network(prepared[0])
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.objective(embeddings.float())

    def objective(self, embeddings: Tensor) -> tuple[Tensor, Logged]:
        """embeddings (2n, dim) of this rank's views. `contrastive_accuracy`: percent of views nearest to their other view."""
        embeddings = gather_batch(embeddings, 2, self.rank_info)
        images = torch.arange(len(embeddings) // 2, device=embeddings.device)
        total = clustering_loss(embeddings, images.repeat(2), self.method.temperature)
        z = F.normalize(embeddings.detach(), dim=1)
        similarity = (z @ z.T).fill_diagonal_(-torch.inf)
        accuracy = top1_percent_strict(similarity, torch.cat((images + len(images), images)))
        return total, {"loss": total.detach(), "contrastive_accuracy": accuracy}

    def encoder_state_dict(self) -> dict[str, Tensor]:
        return self.network.encoder.weights()

    def picture(self, prepared: tuple[Tensor, ...]) -> Tensor:
        """The two views of each image side by side."""
        return augment.to_pixels(prepared[0]).unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
