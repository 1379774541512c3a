"""The pretext task solved: patches put back together by the network's own clusters and locations, beside input and truth."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid, save_image

from jigclu import augment, counter_rng
from jigclu.data.loader import Batch
from jigclu.figures.neighbours import RIGHT, WRONG
from jigclu.methods.jigclu import JigClu
from jigclu.montage import assemble, stitch
from jigclu.patches import patch_size
from jigclu.resample import crop_resize
from jigclu.training.inputs import whole

IMAGES = 8  # that are shuffled among themselves
CHANCES = 100  # groupings at random, for what chance gives


@torch.no_grad()
def recover(method: JigClu, batch: Batch, epoch: int, figures: Path) -> dict[str, float]:
    """Draw recovery.png from up to IMAGES images, and say how much of it is right, both in percent of the patches.

    `recovered_images`: of the image that their group stands for, every group for another one; `recovered_chance`: the same of
    groups at random; `recovered_places`: besides put where they came from. The network is in eval mode meanwhile.
    """
    batch = Batch(*(field[:IMAGES] for field in batch))
    m, count = method.m, len(batch.labels)
    patches = method.patches(batch, epoch, patch_size(method.config.image_size, m))
    permutation = counter_rng.permutation(method.seed, counter_rng.MONTAGE, epoch, 0, m * m * count)
    montages = stitch(patches, permutation.to(patches.device), m)
    embeddings, logits = _seen(method, montages)
    groups = grouped(embeddings, m * m)
    places = torch.stack([placed(logits[group].log_softmax(1)) for group in groups])
    images, positions = permutation[groups] % count, permutation[groups] // count  # (count, m*m) each
    owner = owners(images)
    rightly, there = images == owner[:, None], places == positions
    pixels = augment.to_pixels(patches).cpu()
    rows = [
        augment.to_pixels(montages).cpu(),
        assemble(_by_position(_framed(pixels[permutation[groups]], rightly & there), places), m),
        assemble(pixels.unflatten(0, (m * m, count))[:, owner].flatten(0, 1), m),
        _squares(batch, montages.shape[-1])[owner],
    ]
    save_image(make_grid(torch.cat(rows), nrow=count, padding=4, pad_value=1), figures / "recovery.png")
    percent = {"recovered_images": rightly, "recovered_places": rightly & there}
    told = {name: 100 * float(right.double().mean()) for name, right in percent.items()}
    return {**told, "recovered_chance": chance(count, m * m)}


def _seen(method: JigClu, montages: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and logits of the unwrapped network, on the CPU: no other rank is asked."""
    network, training = method.network, method.network.training
    network.eval()
    try:
        with torch.autocast(montages.device.type, torch.bfloat16, enabled=method.config.precision == "bfloat16"):
            embeddings, logits = network(montages.contiguous(memory_format=torch.channels_last))
    finally:
        network.train(training)
    return embeddings.float().cpu(), logits.float().cpu()


def grouped(embeddings: Tensor, size: int) -> Tensor:
    """(k*size, dim) -> (k, size): which vectors belong together, by greedy agglomeration into groups of equal size.

    The two nearest vectors that are left begin a group; the one nearest to it on average joins until it is full.
    """
    unit = F.normalize(embeddings, dim=1)
    near = (unit @ unit.T).fill_diagonal_(-torch.inf)
    free = torch.ones(len(embeddings), dtype=torch.bool)
    groups = []
    for _ in range(len(embeddings) // size):
        among = near.masked_fill(~(free[:, None] & free), -torch.inf)
        group = [int(one) for one in divmod(int(among.argmax()), len(near))][:size]
        free[group] = False
        while len(group) < size:
            closest = near[group].mean(0).masked_fill(~free, -torch.inf)
            group.append(int(closest.argmax()))
            free[group] = False
        groups.append(group)
    return torch.tensor(groups)


def placed(scores: Tensor) -> Tensor:
    """(n, n) log probabilities [vector, position] -> (n,): a position each, none twice, the surest first."""
    left, places = scores.clone(), torch.empty(len(scores), dtype=torch.int64)
    for _ in range(len(scores)):
        vector, position = divmod(int(left.argmax()), len(scores))
        places[vector] = position
        left[vector], left[:, position] = -torch.inf, -torch.inf
    return places


def owners(images: Tensor) -> Tensor:
    """(k, size) image of each vector of each group -> (k,): the image that each group stands for, none twice, most votes first."""
    count = len(images)
    votes = F.one_hot(images, count).sum(1)
    found = torch.empty(count, dtype=torch.int64)
    for _ in range(count):
        group, image = divmod(int(votes.argmax()), count)
        found[group] = image
        votes[group], votes[:, image] = -1, -1
    return found


def chance(count: int, size: int) -> float:
    """What percentage of the vectors of `count` images stands in the right group where they are grouped at random."""
    generator, of = torch.Generator().manual_seed(0), torch.arange(count).repeat(size)
    drawn = [of[torch.randperm(count * size, generator=generator)].view(count, size) for _ in range(CHANCES)]
    return 100 * float(torch.stack([images == owners(images)[:, None] for images in drawn]).double().mean())


def _by_position(pixels: Tensor, places: Tensor) -> Tensor:
    """(k, m*m, 3, h, h) and the position of each -> (m*m*k, 3, h, h), position-major, as `assemble` wants it."""
    order = places.argsort(dim=1)[:, :, None, None, None].expand_as(pixels)
    return pixels.gather(1, order).transpose(0, 1).flatten(0, 1)


def _framed(pixels: Tensor, right: Tensor) -> Tensor:
    """(k, m*m, 3, h, h) with a frame that says whether the patch is where it belongs."""
    line = max(1, pixels.shape[-1] // 24)
    colours = torch.where(right[..., None], torch.tensor(RIGHT), torch.tensor(WRONG))[..., None, None]
    inner = F.pad(torch.zeros_like(pixels[0, 0, :1])[:, line:-line, line:-line], (line,) * 4, value=1.0)
    return torch.where(inner.bool(), colours, pixels)


def _squares(batch: Batch, side: int) -> Tensor:
    """The images whole, as squares of `side` pixels."""
    canvases = batch.canvas.cpu()
    return crop_resize(canvases, whole(batch.sizes.cpu())[:, 0], side)
