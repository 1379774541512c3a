"""The suite's batched augmentation against PIL and torchvision one patch at a time, with the same images and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torchvision.transforms.functional as tf
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode

from benchmarks.timing import Group, Ratio, timed
from benchmarks.workload import Workload, one_batch, photographs
from jigclu import augment
from jigclu.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, Parameters
from jigclu.training.inputs import split

CORES = 16  # the released recipe's share of a node; PIL is assumed to scale perfectly to them
COLOURS: dict[int, Callable[[Image.Image, float], Image.Image]] = {
    BRIGHTNESS: tf.adjust_brightness, CONTRAST: tf.adjust_contrast, SATURATION: tf.adjust_saturation, HUE: tf.adjust_hue,
}  # fmt: skip


def measure(workload: Workload, rounds: int) -> Group:
    patch, threads = workload.image_size // 2, torch.get_num_threads()
    with photographs(workload, workload.batch_size) as dataset:
        batch = one_batch(workload, dataset)
    images = [tf.to_pil_image(canvas) for canvas in batch.canvas]
    boxes = split(batch.sizes, 2, 0.3)
    canvases = batch.canvas.to(workload.device)
    recipe = workload.config().augment

    def draw() -> Parameters:
        return augment.draw(recipe, 0, 0, batch.indices, boxes, colour=recipe)

    def batched() -> Tensor:
        return augment.apply(canvases, draw(), patch)

    drawn = draw()
    count = len(drawn.flip)
    rows = timed(
        "batched, all threads" if workload.device.type == "cpu" else "batched, on the device",
        batched,
        rounds,
        items=count,
        unit="patches",
    )
    torch.set_num_threads(1)
    one_core = {"PIL, one core": lambda: by_pil(images, drawn, patch)}
    if workload.device.type == "cpu":
        one_core["batched, one core"] = batched
    rows += timed("", one_core, max(3, rounds // 3), items=count, unit="patches", warm=1)
    torch.set_num_threads(threads)
    decibels = psnr(batched().cpu(), by_pil(images, drawn, patch))
    group = Group(
        "augmentation",
        f"{count} patches of {patch} px from canvases of {workload.canvas} px; PSNR {decibels:.1f} dB",
        rows,
    )
    median = {row.name: row.median for row in rows}
    if workload.device.type == "cpu":
        group.ratios.append(
            Ratio(
                "PIL / batched, seconds on one core", median["PIL, one core"] / median["batched, one core"], (">=", 1.0)
            )
        )
    else:
        device = median["batched, on the device"]
        group.ratios.append(
            Ratio(
                f"PIL on {CORES} cores / batched on the device, seconds",
                median["PIL, one core"] / CORES / device,
                (">=", 20.0),
            )
        )
        group.ratios.append(Ratio("batched on the device, ms", 1e3 * device, ("<=", 3.0)))
    return group


def by_pil(images: list[Image.Image], drawn: Parameters, size: int) -> Tensor:
    """The released recipe's augmentations, patch by patch (protocols.md §1.2), with given parameters: (P*N, 3, size, size)."""
    return torch.stack([patch_by_pil(images[i % len(images)], drawn, i, size) for i in range(len(drawn.flip))])


def patch_by_pil(image: Image.Image, drawn: Parameters, i: int, size: int) -> Tensor:
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


def psnr(batched: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of pixels in [0, 1]."""
    return -10 * math.log10(float((augment.to_pixels(batched) - augment.to_pixels(reference)).square().mean()))
