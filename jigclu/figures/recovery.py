"""The pretext task solved: images reassembled from the network's own clusters and locations, beside input and truth."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import make_grid, save_image

from jigclu import augment, counter_rng
from jigclu.data.loader import Batch
from jigclu.figures.neighbours import RIGHT, WRONG
from jigclu.montage import assemble, stitch
from jigclu.patches import patch_size
from jigclu.resample import crop_resize
from jigclu.training.inputs import Patches, full_boxes

IMAGES = 8  # shuffled among themselves
CHANCES = 100  # random groupings, to measure the chance level


@torch.no_grad()
def recover(
    network: nn.Module, make_patches: Patches, batch: Batch, epoch: int, bfloat16: bool, folder: Path
) -> dict[str, float]:
    """Draw recovery.png from up to IMAGES images and measure how much of it is right.

    Args:
        network: montages (N, 3, S, S) -> embeddings (m*m*N, dim), logits (m*m*N, m*m); run in eval mode here.
        make_patches: the method's patches, drawn for `epoch`.
        batch: images, of which the first IMAGES are used.
        epoch: also chooses the permutation, as in training.
        bfloat16: whether the network runs under autocast.
        folder: where recovery.png goes.

    Returns:
        Percentages of patches: `recovered_images`, those in their image's group (groups and images are matched one to one);
        `recovered_chance`, the same for random groups; `recovered_places`, those also in their own position.
    """
    batch = Batch(*(field[:IMAGES] for field in batch))
    m, count = make_patches.m, len(batch.labels)
    patches = make_patches(batch, epoch, patch_size(make_patches.image_size, m))
    permutation = counter_rng.permutation(make_patches.seed, counter_rng.MONTAGE, epoch, 0, m * m * count)
    montages = stitch(patches, permutation.to(patches.device), m)
    embeddings, logits = _predictions(network, montages, bfloat16)
    groups = group_vectors(embeddings, m * m)
    predicted = torch.stack([assigned_positions(logits[group].log_softmax(1)) for group in groups])
    images, positions = permutation[groups] % count, permutation[groups] // count  # (count, m*m) each
    owner = owners(images)
    right_image, right_position = images == owner[:, None], predicted == positions
    pixels = augment.to_pixels(patches).cpu()
    rows = [
        augment.to_pixels(montages).cpu(),
        assemble(_by_position(_framed(pixels[permutation[groups]], right_image & right_position), predicted), m),
        assemble(pixels.unflatten(0, (m * m, count))[:, owner].flatten(0, 1), m),
        _squares(batch, montages.shape[-1])[owner],
    ]
    save_image(make_grid(torch.cat(rows), nrow=count, padding=4, pad_value=1), folder / "recovery.png")
    return {
        "recovered_images": _percent(right_image),
        "recovered_places": _percent(right_image & right_position),
        "recovered_chance": chance_level(count, m * m),
    }


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def _predictions(network: nn.Module, montages: Tensor, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """Embeddings and logits on the CPU. The network must not be wrapped for several ranks: it would wait for the others."""
    training = network.training
    network.eval()
    try:
        with torch.autocast(montages.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings, logits = network(montages.contiguous(memory_format=torch.channels_last))
    finally:
        network.train(training)
    return embeddings.float().cpu(), logits.float().cpu()


def group_vectors(embeddings: Tensor, size: int) -> Tensor:
    """(k*size, dim) -> (k, size) indices: greedy agglomeration of the vectors into groups of equal size.

    The two nearest free vectors start a group; the free vector nearest to it on average joins until it is full.
    """
    unit = F.normalize(embeddings, dim=1)
    near = (unit @ unit.T).fill_diagonal_(-torch.inf)
    free = torch.ones(len(embeddings), dtype=torch.bool)
    groups = []
    for _ in range(len(embeddings) // size):
        among = near.masked_fill(~(free[:, None] & free), -torch.inf)
        group = list(divmod(int(among.argmax()), len(near)))[:size]
        free[group] = False
        while len(group) < size:
            closest = near[group].mean(0).masked_fill(~free, -torch.inf)
            group.append(int(closest.argmax()))
            free[group] = False
        groups.append(group)
    return torch.tensor(groups)


def assigned_positions(scores: Tensor) -> Tensor:
    """(n, n) log probabilities [vector, position] -> (n,): a position for each vector, the most confident assigned first."""
    free, positions = scores.clone(), torch.empty(len(scores), dtype=torch.int64)
    for _ in range(len(scores)):
        vector, position = divmod(int(free.argmax()), len(scores))
        positions[vector] = position
        free[vector], free[:, position] = -torch.inf, -torch.inf
    return positions


def owners(images: Tensor) -> Tensor:
    """(k, size) image of each vector of each group -> (k,): a different image for each group, most votes first."""
    count = len(images)
    votes = F.one_hot(images, count).sum(1)
    owner = torch.empty(count, dtype=torch.int64)
    for _ in range(count):
        group, image = divmod(int(votes.argmax()), count)
        owner[group] = image
        votes[group], votes[:, image] = -1, -1
    return owner


def chance_level(count: int, size: int) -> float:
    """Percentage of the vectors of `count` images in the right group when groups are random."""
    generator, image_of = torch.Generator().manual_seed(0), torch.arange(count).repeat(size)
    drawn = [image_of[torch.randperm(count * size, generator=generator)].view(count, size) for _ in range(CHANCES)]
    return 100 * float(torch.stack([images == owners(images)[:, None] for images in drawn]).double().mean())


def _by_position(pixels: Tensor, positions: Tensor) -> Tensor:
    """(k, m*m, 3, h, h) and the position of each -> (m*m*k, 3, h, h), position-major, as `assemble` expects."""
    order = positions.argsort(dim=1)[:, :, None, None, None].expand_as(pixels)
    return pixels.gather(1, order).transpose(0, 1).flatten(0, 1)


def _framed(pixels: Tensor, right: Tensor) -> Tensor:
    """(k, m*m, 3, h, h), each patch framed in RIGHT or WRONG."""
    line = max(1, pixels.shape[-1] // 24)
    colours = torch.where(right[..., None], torch.tensor(RIGHT), torch.tensor(WRONG))[..., None, None]
    inner = F.pad(torch.zeros_like(pixels[0, 0, :1])[:, line:-line, line:-line], (line,) * 4, value=1.0)
    return torch.where(inner.bool(), colours, pixels)


def _squares(batch: Batch, side: int) -> Tensor:
    """The whole images as squares of `side` pixels."""
    canvases = batch.canvas.cpu()
    return crop_resize(canvases, full_boxes(batch.sizes.cpu())[:, 0], side)
