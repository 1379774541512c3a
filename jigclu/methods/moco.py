"""MoCo (He et al. 2020; version 2, Chen et al. 2020): find a query's key among a queue of earlier images' keys."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jigclu import augment, counter_rng
from jigclu.config import PretrainConfig
from jigclu.config.base import ConfigError
from jigclu.config.methods import MoCoConfig
from jigclu.data.loader import Batch
from jigclu.losses import top1_percent_strict
from jigclu.methods.base import Logged, Method
from jigclu.network import EncoderWithHead
from jigclu.training.distributed import RankInfo, gather_batch
from jigclu.training.inputs import views


class MoCoNetwork(nn.Module):
    """images (n, 3, S, S) -> queries (n, dim). Holds all of MoCo's state: both encoders, the queue and its write pointer.

    `key` starts as a copy of `query` and has no gradient. Its batch norms always use the batch's statistics and keep no running
    ones (it is never evaluated), so it is the same on every rank although each rank sees different images.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(self, backbone: str, dim: int, linear: bool, queue: int):
        super().__init__()
        self.query = EncoderWithHead(backbone, dim, "linear" if linear else "mlp")
        self.key = KeyEncoder(self.query)
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        return self.query(images)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """key <- momentum * key + (1 - momentum) * query, parameter by parameter."""
        for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
            key.lerp_(query, 1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest keys by keys (N, dim), wrapping at the queue's end; N is at most the queue's length."""
        slots = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[slots] = keys.to(self.queue.dtype)
        self.pointer.copy_((self.pointer + len(keys)) % len(self.queue))


class KeyEncoder(nn.Module):
    """A copy of the query's encoder and head, updated only by `MoCoNetwork.follow`."""

    local_batch_norm = True  # see batch_norm.synchronise_batch_norm

    def __init__(self, query: EncoderWithHead):
        super().__init__()
        self.net = copy.deepcopy(query).requires_grad_(False)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.contiguous(memory_format=torch.channels_last))


class MoCo(Method):
    """n images -> n queries, and N keys of the global batch."""

    network: MoCoNetwork

    def __init__(self, config: PretrainConfig, seed: int, rank_info: RankInfo, classes: int = 0):
        method = config.method
        assert isinstance(method, MoCoConfig)
        self.config, self.method, self.seed, self.rank_info = config, method, seed, rank_info
        method.check(config.batch_size, config.image_size)
        self.groups = groups(config.batch_size, method.shuffle_groups)
        if self.groups % rank_info.world:
            raise ConfigError(
                f"pretrain.method.shuffle_groups: {self.groups} groups of a batch of {config.batch_size} are not divisible by "
                f"{rank_info.world} ranks"
            )
        self.network = MoCoNetwork(config.backbone, method.dim, method.version == 1, method.queue)

    @torch.no_grad()
    def prepare(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, ...]:
        """(views (2n, 3, S, S), the queries' then the keys'; permutation (N,) that shuffles the keys' global batch)."""
        order = counter_rng.permutation(
            self.seed, counter_rng.KEYS, epoch, step, len(batch.indices) * self.rank_info.world
        )
        images = views(self.config, 2, batch, self.seed, epoch, self.rank_info.device)
        return images, order.to(self.rank_info.device, non_blocking=True)

    def loss(self, network: nn.Module, prepared: tuple[Tensor, ...]) -> tuple[Tensor, Logged]:
        """InfoNCE over the global batch, in float32. Updates the key encoder before it and the queue after it."""
        images, order = prepared
        for_queries, for_keys = images.chunk(2)
        queries = network(for_queries)
        self.network.follow(self.method.momentum)
        keys = self.keys(for_keys, order)
        with torch.autocast(images.device.type, enabled=False):
            total, logged = self.objective(queries.float(), keys)
        self.network.enqueue(keys)
        return total, logged

    @torch.no_grad()
    def keys(self, images: Tensor, order: Tensor) -> Tensor:
        """images (n, 3, S, S) of this rank, order (N,) -> normalised keys (N, dim) of the global batch, not shuffled.

        Shuffled batch norm: `groups` random parts of the batch go through the key encoder one by one, shared out among the ranks.
        Queries are normalised over the whole batch, so batch statistics do not reveal which key belongs to which query.
        """
        gathered = gather_batch(images, 1, self.rank_info)
        share = self.groups // self.rank_info.world
        parts = order.view(self.groups, -1)[self.rank_info.rank * share : (self.rank_info.rank + 1) * share]
        shuffled = torch.cat([F.normalize(self.network.key(gathered[part]).float(), dim=1) for part in parts])
        shuffled = gather_batch(shuffled, 1, self.rank_info)
        keys = torch.empty_like(shuffled)
        keys[order] = shuffled
        return keys

    def objective(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Logged]:
        """queries (n, dim) of this rank, keys (N, dim) normalised: cross-entropy of [q.k+, q.queue] / temperature, target 0.

        `contrastive_accuracy`: percent of queries nearer to their own key than to every key of the queue.
        """
        q = F.normalize(gather_batch(queries, 1, self.rank_info), dim=1)
        # A copy of the queue: it is overwritten before the backward pass needs these values.
        logits = torch.cat(((q * keys).sum(dim=1, keepdim=True), q @ self.network.queue.to(q.dtype, copy=True).T), 1)
        logits = logits / self.method.temperature
        first = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        total = F.cross_entropy(logits, first)
        return total, {"loss": total.detach(), "contrastive_accuracy": top1_percent_strict(logits.detach(), first)}

    def encoder_state_dict(self) -> dict[str, Tensor]:
        return self.network.query.encoder.weights()

    def picture(self, prepared: tuple[Tensor, ...]) -> Tensor:
        """The query's view and the key's side by side, image by image."""
        return augment.to_pixels(prepared[0]).unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def groups(batch: int, wanted: int) -> int:
    """How many equal parts a batch is shuffled into: its largest divisor up to `wanted` with at least two images in each.

    A single image has no batch statistics.
    """
    return max(parts for parts in range(1, min(wanted, batch // 2) + 1) if batch % parts == 0)
