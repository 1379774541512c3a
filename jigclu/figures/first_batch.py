"""Figures of the first batch of a pretraining, drawn by the code that makes its batches.

Only rank 0 draws, so nothing here may wait for other ranks.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid, save_image

from jigclu import augment, counter_rng
from jigclu.data.loader import Batch
from jigclu.montage import stitch
from jigclu.patches import patch_size
from jigclu.resample import crop_resize
from jigclu.training.inputs import Patches, full_boxes, split

# Okabe and Ito's eight, which colour-blind people can tell apart; more than eight boxes repeat them.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#000000")
IMAGES = 4  # of the batch, in patches.png and inputs.png


def draw_inputs(images: Tensor, path: Path) -> None:
    """Up to 16 inputs of the network, images (N, 3, h, w) in [0, 1], as a grid."""
    save_image(make_grid(images[:16].cpu(), nrow=4, padding=4, pad_value=1), path)


@torch.no_grad()
def draw_jigsaw(patches: Patches, batch: Batch, folder: Path) -> None:
    """JigClu's own figures, of a few images of the batch: split.png, patches.png and inputs.png."""
    few = Batch(*(field[:IMAGES] for field in batch))
    drawings = {
        "split": draw_boxes(patches, few),
        "patches": draw_patches(patches, few),
        "inputs": draw_forms(patches, few),
    }
    for name, drawing in drawings.items():
        save_image(drawing, folder / f"{name}.png")


def draw_boxes(patches: Patches, batch: Batch) -> Tensor:
    """Two images, not augmented, with the m x m boxes of their split, drawn inset so that shared edges show."""
    m, pictures = patches.m, []
    for canvas, size in zip(batch.canvas[:2].cpu(), batch.sizes[:2], strict=True):
        zoom = max(1, 256 // int(size.min()))
        height, width = (size * zoom).tolist()
        canvas = canvas.repeat_interleave(zoom, dim=1).repeat_interleave(zoom, dim=2)[:, :height, :width]
        line = max(2, min(height, width) // 80)
        positions = torch.arange(m * m)
        inset = line * (positions // m + positions % m)[:, None]  # neighbours in a row and in a column differ
        frames = split(size[None], m, patches.extend)[0] * zoom
        frames = torch.cat((frames[:, :2] + inset, frames[:, 2:] - 1 - inset), 1)
        colours = [COLOURS[position % len(COLOURS)] for position in range(m * m)]
        pictures.append(draw_bounding_boxes(canvas, frames, colors=colours, width=line) / 255)
    return _beside(pictures)


def draw_patches(patches: Patches, batch: Batch) -> Tensor:
    """A row per image: the image as a square, its m*m patches as cut, and the same patches augmented."""
    mm, size = patches.m * patches.m, patch_size(patches.image_size, patches.m)
    canvases = batch.canvas.to(patches.device)
    square = crop_resize(canvases, full_boxes(batch.sizes)[:, 0].to(canvases.device), size)
    cut = patches.plain(canvases, batch.sizes, size)
    augmented = augment.to_pixels(patches(batch, 0, size))
    columns = torch.cat((square, cut, augmented)).unflatten(0, (1 + 2 * mm, -1))
    return make_grid(columns.transpose(0, 1).flatten(0, 1).cpu(), nrow=1 + 2 * mm, padding=2, pad_value=1)


def draw_forms(patches: Patches, batch: Batch) -> Tensor:
    """Figure 5, at true relative size: the batch as (a) small patches, (b) patches scaled up, (c) montages."""
    m, side = patches.m, patches.image_size
    small, scaled = (augment.to_pixels(patches(batch, 0, size)).cpu() for size in (patch_size(side, m), side))
    montages = stitch(small, counter_rng.permutation(patches.seed, counter_rng.MONTAGE, 0, 0, len(small)), m)
    rows = ((small, 2 * m), (scaled, 2 * m), (montages, 2))
    return _beside([make_grid(images, nrow=nrow, padding=2, pad_value=1) for images, nrow in rows])


def _beside(pictures: list[Tensor], gap: int = 8) -> Tensor:
    """(3, h, w) in [0, 1] each, side by side on white."""
    height = max(picture.shape[1] for picture in pictures)
    framed = [F.pad(picture, (gap, gap, gap, gap + height - picture.shape[1]), value=1.0) for picture in pictures]
    return torch.cat(framed, dim=2)
