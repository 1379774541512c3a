"""Paper §3.3, the objective: supervised clustering (Eq. 1-2), location (Eq. 3) and their sum (Eq. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clustering_loss(embeddings: Tensor, cluster_ids: Tensor, temperature: float) -> Tensor:
    """Supervised clustering loss (paper §3.3, Eq. 1-2), with no further factor.

    Args:
        embeddings: (B, D); they are normalised here.
        cluster_ids: (B,) the image that each patch comes from; all clusters have the same size mm > 1.
        temperature: divides the cosine similarities.

    Returns:
        Scalar: the mean over patches i, and over the mm - 1 other patches j of i's cluster, of -log softmax at j of
        cos(z_i, z_k) / temperature over all k != i.
    """
    z = F.normalize(embeddings, dim=1)
    similarity = (z @ z.T) / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_probability = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    same = (cluster_ids[:, None] == cluster_ids[None, :]) & ~itself
    # torch.where, not a product: the diagonal's term must not leak a gradient.
    per_patch = torch.where(same, log_probability, 0).sum(dim=1) / same.sum(dim=1)
    return -per_patch.mean()


def location_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Location loss (paper §3.3, Eq. 3): cross-entropy.

    Args:
        logits: (B, m*m).
        positions: (B,) int64, each patch's position in its image, row-major.

    Returns:
        Scalar: the mean over patches.
    """
    return F.cross_entropy(logits, positions)


@torch.no_grad()
def top1_percent_strict(scores: Tensor, targets: Tensor) -> Tensor:
    """Percentage of rows in which the target alone has the largest score.

    A tie counts as a miss, so that an encoder that maps everything to one point is not always right.

    Args:
        scores: (B, K).
        targets: (B,) int64.

    Returns:
        Scalar in percent.
    """
    own = scores.gather(1, targets[:, None])
    return ((scores >= own).sum(dim=1) == 1).float().mean() * 100
