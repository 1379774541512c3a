"""The order of the images in an epoch: counter-based, so it does not depend on ranks, workers or resumes."""

from __future__ import annotations

from jigclu import counter_rng
from jigclu.config import ConfigError


def epoch_groups(
    seed: int, epoch: int, length: int, batch: int, *, rank: int = 0, world: int = 1, drop_last: bool = True
) -> list[list[int]]:
    """One rank's index groups, one per step: its contiguous part of every global batch of the epoch's permutation.

    Raises ConfigError if the batch does not divide by the number of ranks or the data set is smaller than a batch.
    """
    if batch % world:
        raise ConfigError(f"a global batch of {batch} does not divide by {world} ranks")
    if drop_last and length < batch:
        raise ConfigError(f"{length} images do not fill one batch of {batch}")
    order = counter_rng.permutation(seed, counter_rng.SHUFFLE, epoch, 0, length).tolist()
    local = batch // world
    starts = range(0, length - batch + 1 if drop_last else length, batch)
    return [order[start + rank * local : min(start + (rank + 1) * local, start + batch)] for start in starts]
