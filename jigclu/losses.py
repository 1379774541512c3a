"""Paper §3.3, the objective: supervised clustering (Eq. 1-2), location (Eq. 3) and their sum (Eq. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clustering_loss(embeddings: Tensor, cluster_ids: Tensor, temperature: float) -> Tensor:
    """Eq. 1-2, no further factor.

    embeddings: (B, D), normalised here; cluster_ids: (B,), the image that each patch comes from; every cluster must have
    the same size, mm > 1. Scalar: the mean over patches i of the mean over the mm - 1 others j of i's cluster of
    -log softmax over all k != i of cos(z_i, z_k) / temperature, at j.
    """
    z = F.normalize(embeddings, dim=1)
    similarity = (z @ z.T) / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_probability = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    same = (cluster_ids[:, None] == cluster_ids[None, :]) & ~itself
    # torch.where, not a product: the diagonal's term must not leak a gradient.
    pulled = torch.where(same, log_probability, 0).sum(dim=1) / same.sum(dim=1)
    return -pulled.mean()


def location_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Eq. 3: cross-entropy of (B, m*m) logits with the patches' positions (B,), mean over patches."""
    return F.cross_entropy(logits, positions)


@torch.no_grad()
def top1_percent_strict(scores: Tensor, targets: Tensor) -> Tensor:
    """Percent of the rows of (B, K) in which the target's score, targets (B,), is the one largest.

    A tie counts as a miss, so that an encoder that maps everything to one point is not right everywhere.
    """
    own = scores.gather(1, targets[:, None])
    return ((scores >= own).sum(dim=1) == 1).float().mean() * 100
