"""The pretext task solved: images reassembled from the network's own clusters and locations, beside input and truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from jigclu.training.inputs import Patches

IMAGES = 8  # shuffled among themselves
CHANCES = 100  # random groupings, to measure the chance level
ELSEWHERE = (0.34, 0.71, 0.91)  # Okabe and Ito's sky blue


@dataclass(frozen=True)
class Solution:
    """How a network puts the patches of `count` images back; row k of each field is image k's, (count, m*m).

    `patches`: ids of the patches in its group (position * count + image); `predicted`: the place that each is put at; `own`:
    whether it is a patch of image k; `right`: whether it is also at its own place.
    """

    patches: Tensor
    predicted: Tensor
    own: Tensor
    right: Tensor


@torch.no_grad()
def recover(
    networks: Mapping[str, nn.Module], make_patches: Patches, batch: Batch, epoch: int, bfloat16: bool, folder: Path
) -> dict[str, float]:
    """Measure how well networks put patches back, IMAGES images at a time, and draw recovery.png from the first IMAGES.

    The picture's rows: the montages, the images as put back by each network, the truth. A patch is framed in RIGHT if it is
    with its own image and at its own place, in ELSEWHERE if it is at another place, in WRONG if it is with another image.

    Args:
        networks: `untrained` and `trained`: montages (N, 3, S, S) -> embeddings (m*m*N, dim), logits (m*m*N, m*m); run in
            eval mode here.
        make_patches: the method's patches, drawn for `epoch`.
        batch: images, in an order without meaning: each IMAGES of them in turn are shuffled together.
        epoch: also chooses the permutation, as in training.
        bfloat16: whether the networks run under autocast.
        folder: where recovery.png goes.

    Returns:
        Percentages of patches: `recovered_images`, those in their image's group (groups and images are matched one to one);
        `recovered_places`, those also at their own place; both with `_untrained` of that network and with `_chance` for
        random groups and places. `recovered_patches`: how many patches were counted.
    """
    m, rounds = make_patches.m, max(1, len(batch.labels) // IMAGES)
    parts = [Batch(*(field[start * IMAGES :][:IMAGES] for field in batch)) for start in range(rounds)]
    solved: dict[str, list[Solution]] = {name: [] for name in networks}
    for number, part in enumerate(parts):
        patches = make_patches(part, epoch, patch_size(make_patches.image_size, m))
        permutation = counter_rng.permutation(make_patches.seed, counter_rng.MONTAGE, epoch, number, len(patches))
        montages = stitch(patches, permutation.to(patches.device), m)
        for name, network in networks.items():
            solved[name].append(solve(*_predictions(network, montages, bfloat16), permutation, m))
        if not number:
            pixels, inputs = augment.to_pixels(patches).cpu(), augment.to_pixels(montages).cpu()
            rows = [inputs, *(draw(pixels, solutions[0], m) for solutions in solved.values()), assemble(pixels, m)]
            save_image(
                make_grid(torch.cat(rows), nrow=len(part.labels), padding=4, pad_value=0.94), folder / "recovery.png"
            )
    found = {}
    for name, ending in (("untrained", "_untrained"), ("trained", "")):
        for what in ("own", "right"):
            right = torch.cat([getattr(solution, what).flatten() for solution in solved[name]])
            found[f"recovered_{'images' if what == 'own' else 'places'}{ending}"] = 100 * float(right.double().mean())
    chance = chance_level(len(parts[0].labels), m * m)
    counted = sum(solution.own.numel() for solution in solved["trained"])
    found |= {"recovered_chance": chance, "recovered_places_chance": chance / m**2, "recovered_patches": counted}
    return found


def solve(embeddings: Tensor, logits: Tensor, permutation: Tensor, m: int) -> Solution:
    """Group the vectors and place each: embeddings (m*m*n, dim) and logits (m*m*n, m*m) in the order of the permutation."""
    count = len(embeddings) // (m * m)
    groups = group_vectors(embeddings, m * m)
    predicted = torch.stack([assigned_positions(logits[group].log_softmax(1)) for group in groups])
    owner = owners(permutation[groups] % count)
    order = owner.argsort()  # one group for each image
    patches, predicted = permutation[groups][order], predicted[order]
    own = patches % count == torch.arange(count)[:, None]
    return Solution(patches, predicted, own, own & (predicted == patches // count))


def draw(pixels: Tensor, solution: Solution, m: int) -> Tensor:
    """Patches (m*m*n, 3, h, h) as the network put them back, framed: (n, 3, m*h, m*h)."""
    frames = torch.tensor(WRONG).expand(*solution.own.shape, 3).clone()
    frames[solution.own] = torch.tensor(ELSEWHERE)
    frames[solution.right] = torch.tensor(RIGHT)
    return assemble(_by_position(_framed(pixels[solution.patches], frames), solution.predicted), m)


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


def _framed(pixels: Tensor, colours: Tensor) -> Tensor:
    """(k, m*m, 3, h, h), each patch framed in its colour (k, m*m, 3)."""
    line = max(1, pixels.shape[-1] // 16)
    inner = F.pad(torch.zeros_like(pixels[0, 0, :1])[:, line:-line, line:-line], (line,) * 4, value=1.0)
    return torch.where(inner.bool(), colours[..., None, None], pixels)
