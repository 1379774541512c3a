"""Crops for evaluation and fine-tuning, in batches on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from jigclu import augment, counter_rng
from jigclu.config import ClassifierConfig, ConfigError
from jigclu.resample import Taps, resample, triangle
from jigclu.training.inputs import full_boxes


def centre_crop(canvas: Tensor, sizes: Tensor, resize: int, size: int) -> Tensor:
    """Resize the shorter side to `resize`, crop the centre `size` x `size`, normalise (protocols.md §2.1 "test").

    canvas (N, 3, S, S) uint8 with the images' (height, width) in sizes (N, 2). Resize and crop are one resampling: the
    filter sees past the crop's border, as it does when an image is resized before it is cropped.
    """
    side = canvas.shape[-1]
    shorter = sizes.min(dim=1).values
    axes = []
    for extent in (sizes[:, 0], sizes[:, 1]):
        # torchvision truncates the longer side. In integers: floats would lose a pixel here and there.
        resized = resize * extent // shorter
        step = extent.double() / resized
        start = ((resized - size) / 2).round() * step
        axes.append(triangle(start, size * step, side, size, limit=extent))
    rows, columns = (Taps(*(part.to(canvas.device) for part in taps)) for taps in axes)
    # Divided afterwards, so that an image of that size stays the same to the bit.
    return augment.normalise(resample(canvas, rows, columns, white=1) / 255)


def random_crop(
    config: ClassifierConfig, canvas: Tensor, sizes: Tensor, indices: Tensor, seed: int, epoch: int
) -> Tensor:
    """The train transform of a classifier, normalised: (N, 3, image_size, image_size) float32 on the canvas's device.

    canvas (N, 3, S, S) uint8, sizes (N, 2) height and width, indices (N,); the draws are counted by (seed, epoch, index).
    `crop: resized`: resized crop and flip of the whole image (protocols.md §2.1 "train aug"); `padded`: §2.5's.

    Raises:
        ConfigError: an image is too small for a padded crop.
    """
    if config.crop == "padded":
        return augment.normalise(_padded(config, canvas, sizes, indices, seed, epoch).float() / 255)
    parameters = augment.draw(config, seed, epoch, indices, full_boxes(sizes), counter_rng.PROBE, colour=None)
    return augment.apply(canvas, parameters, config.image_size)


def _padded(config: ClassifierConfig, canvas: Tensor, sizes: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
    room = sizes + 2 * config.padding - config.image_size
    if (room < 0).any():
        height, width = sizes[room.amin(dim=1).argmin()].tolist()
        raise ConfigError(
            f"crop: padded: an image of {width} x {height} with a border of {config.padding} pixels is smaller than "
            f"image_size {config.image_size}"
        )
    drawn = counter_rng.uniforms(seed, counter_rng.PROBE, epoch, indices, 1, 3)[:, 0]
    flip = drawn[:, 2] < config.flip_probability
    return padded_crop(canvas, sizes, (drawn[:, :2] * (room + 1)).long(), flip, config.image_size, config.padding)


def padded_crop(canvas: Tensor, sizes: Tensor, offsets: Tensor, flip: Tensor, size: int, padding: int) -> Tensor:
    """Crop `size` x `size` pixels of each image with a black border of `padding` pixels, as torchvision does: no resampling.

    canvas (N, 3, S, S) uint8; sizes (N, 2) height and width, offsets (N, 2) upper and left in the padded image and flip (N,) bool
    are on the CPU. Returns (N, 3, size, size) uint8.
    """
    side = canvas.shape[-1]
    position = torch.arange(size)
    rows = offsets[:, :1] + position - padding
    columns = offsets[:, 1:] + torch.where(flip[:, None], size - 1 - position, position) - padding
    seen = [(axis >= 0) & (axis < extent[:, None]) for axis, extent in ((rows, sizes[:, 0]), (columns, sizes[:, 1]))]
    inside = (seen[0][:, None, :, None] & seen[1][:, None, None, :]).to(canvas.device, non_blocking=True)
    rows, columns = (axis.clamp(0, side - 1).to(canvas.device, non_blocking=True) for axis in (rows, columns))
    picked = canvas.gather(2, rows[:, None, :, None].expand(-1, 3, -1, side))
    return picked.gather(3, columns[:, None, None, :].expand(-1, 3, size, -1)) * inside
