"""Augmentation: ours in batches against PIL and torchvision one patch at a time, with the same images and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torchvision.transforms.functional as tf
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode

from benchmarks.setting import Setting, one_batch, photographs
from benchmarks.timing import Group, Ratio, timed
from jigclu import augment
from jigclu.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, Parameters
from jigclu.methods.inputs import split

CORES = 16  # the released recipe's share of a node; PIL's rate on one core is multiplied, which takes nothing from it
COLOURS: dict[int, Callable[[Image.Image, float], Image.Image]] = {
    BRIGHTNESS: tf.adjust_brightness, CONTRAST: tf.adjust_contrast, SATURATION: tf.adjust_saturation, HUE: tf.adjust_hue,
}  # fmt: skip


def measure(here: Setting, rounds: int) -> Group:
    patch, threads = here.image_size // 2, torch.get_num_threads()
    with photographs(here, here.batch_size) as dataset:
        batch = one_batch(here, dataset)
    images = [tf.to_pil_image(canvas) for canvas in batch.canvas]
    boxes = split(batch.sizes, 2, 0.3)
    canvases = batch.canvas.to(here.device)
    drawn = augment.draw(here.config().augment, 0, 0, batch.indices, boxes)

    def ours() -> Tensor:
        return augment.apply(canvases, augment.draw(here.config().augment, 0, 0, batch.indices, boxes), patch)

    count = len(drawn.flip)
    rows = timed(
        "ours, all threads" if here.device.type == "cpu" else "ours, on the device",
        ours,
        rounds,
        items=count,
        unit="patches",
    )
    torch.set_num_threads(1)
    alone = {"PIL, one core": lambda: by_pil(images, drawn, patch)}
    if here.device.type == "cpu":
        alone["ours, one core"] = ours
    rows += timed("", alone, max(3, rounds // 3), items=count, unit="patches", warm=1)
    torch.set_num_threads(threads)
    alike = psnr(ours().cpu(), by_pil(images, drawn, patch))
    group = Group(
        "augmentation", f"{count} patches of {patch} px from canvases of {here.canvas} px; PSNR {alike:.1f} dB", rows
    )
    median = {row.name: row.median for row in rows}
    if here.device.type == "cpu":
        group.ratios.append(
            Ratio("PIL / ours, seconds on one core", median["PIL, one core"] / median["ours, one core"], (">=", 1.0))
        )
    else:
        device = median["ours, on the device"]
        group.ratios.append(
            Ratio(
                f"PIL on {CORES} cores / ours on the device, seconds",
                median["PIL, one core"] / CORES / device,
                (">=", 20.0),
            )
        )
        group.ratios.append(Ratio("ours on the device, ms", 1e3 * device, ("<=", 3.0)))
    return group


def by_pil(images: list[Image.Image], drawn: Parameters, size: int) -> Tensor:
    """The released recipe's list, patch by patch (protocols.md §1.2), with parameters drawn before: (P*N, 3, size, size)."""
    return torch.stack([one_by_pil(images[i % len(images)], drawn, i, size) for i in range(len(drawn.flip))])


def one_by_pil(image: Image.Image, drawn: Parameters, i: int, size: int) -> Tensor:
    left, upper, width, height = drawn.crop[i].tolist()
    patch = tf.resized_crop(image, upper, left, height, width, [size, size], InterpolationMode.BILINEAR)
    factors = drawn.factors[i].tolist()
    if factors != [1.0, 1.0, 1.0, 0.0]:
        for operation in drawn.order[i].tolist():
            patch = COLOURS[operation](patch, factors[operation])
    if drawn.gray[i]:
        patch = tf.to_grayscale(patch, 3)
    if drawn.sigma[i] > 0:
        patch = patch.filter(ImageFilter.GaussianBlur(float(drawn.sigma[i])))
    if drawn.flip[i]:
        patch = tf.hflip(patch)
    return tf.normalize(tf.to_tensor(patch), augment.MEAN, augment.STD)


def psnr(ours: Tensor, theirs: Tensor) -> float:
    """In dB, of pixels in [0, 1]."""
    return -10 * math.log10(float((augment.to_pixels(ours) - augment.to_pixels(theirs)).square().mean()))
