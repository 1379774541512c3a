"""The batched augmentation against PIL and torchvision, one patch at a time."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tf
from PIL import Image, ImageFilter, ImageStat
from torch import Tensor
from torchvision.transforms import InterpolationMode

from jigclu import augment, resample
from jigclu.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, Parameters
from jigclu.config import AugmentConfig
from jigclu.patches import split_boxes

LEVEL = 1 / 255
FUNCTIONS: dict[int, Callable[..., Any]] = {
    BRIGHTNESS: tf.adjust_brightness,
    CONTRAST: tf.adjust_contrast,
    SATURATION: tf.adjust_saturation,
    HUE: tf.adjust_hue,
}


@pytest.fixture(scope="module")
def photographs(imagenette: Path) -> Tensor:
    """(10, 3, 128, 128) uint8: the first val image of each class."""
    paths = [sorted(folder.iterdir())[0] for folder in sorted((imagenette / "imagenette" / "val").iterdir())]
    return torch.stack([tf.pil_to_tensor(Image.open(path).convert("RGB")) for path in paths])


@pytest.fixture(scope="module")
def canvases(photographs: Tensor) -> tuple[Tensor, Tensor]:
    """Photographs of several shapes in the corner of a 160-pixel canvas, noise around them; (10, 4, 4) boxes of their patches."""
    noise = torch.randint(0, 256, (10, 3, 160, 160), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    boxes = []
    for i, (width, height) in enumerate([(128, 128), (128, 96), (77, 128), (101, 64), (50, 43)] * 2):
        noise[i, :, :height, :width] = photographs[i, :, :height, :width]
        boxes.append(split_boxes(width, height))
    return noise, torch.tensor(boxes)


def psnr(actual: Tensor, theirs: Tensor) -> Tensor:
    """dB of each sample of (B, c, h, w) in [0, 1]."""
    return -10 * torch.log10((actual - theirs).double().square().mean(dim=(1, 2, 3)).clamp(min=1e-12))


def by_pil(images: Tensor, operation: Callable[[Image.Image, int], Image.Image]) -> Tensor:
    """`operation(image, i)` on each of (B, 3, h, w) uint8 -> (B, 3, h', w') in [0, 1]."""
    return torch.stack([tf.to_tensor(operation(tf.to_pil_image(image), i)) for i, image in enumerate(images)])


def pil_crop(image: Image.Image, crop: list[int], size: int) -> Image.Image:
    left, upper, width, height = crop
    return tf.resized_crop(image, upper, left, height, width, [size, size], InterpolationMode.BILINEAR, antialias=True)


# -- one operation at a time -------------------------------------------------------------------------------------------


def crops_within(boxes: Tensor, generator: torch.Generator) -> Tensor:
    """One crop in each box (B, 4), of any size from 1 x 1 to the whole box; a third of them touch a border."""
    sides = boxes[:, 2:] - boxes[:, :2]
    fraction, place = torch.rand(2, len(boxes), 2, generator=generator)
    size = 1 + (fraction * sides).long().clamp(max=sides - 1)
    border = torch.rand(len(boxes), generator=generator)[:, None]
    place = torch.where(border < 1 / 6, 0.0, torch.where(border > 5 / 6, 0.9999, place))
    return torch.cat((boxes[:, :2] + (place * (sides - size + 1)).long(), size), 1)


@pytest.mark.parametrize("size", [24, 56, 112])
def test_crop_and_resize_is_pil(canvases: tuple[Tensor, Tensor], size: int) -> None:
    """Reduced, enlarged, at borders, single pixels and flipped: the difference is at most PIL's two roundings."""
    images, boxes = canvases
    whole = torch.cat((torch.zeros(10, 2, dtype=torch.int64), boxes[:, 3, 2:]), 1)
    generator = torch.Generator().manual_seed(size)
    crops = [crops_within(whole, generator) for _ in range(10)]
    crops += [torch.cat((whole[:, :2], whole[:, 2:]), 1)]  # all of it
    crops += [torch.cat((whole[:, 2:] - tiny, torch.full_like(whole[:, 2:], tiny)), 1) for tiny in (1, 2, 3)]
    crop = torch.cat(crops)
    assert (crop[:, 2:] < size).all(1).any() and (size == 112 or (crop[:, 2:] > size).all(1).any())
    flip = torch.rand(len(crop), generator=generator) < 0.5
    actual = resample.crop_resize(images, crop, size, flip)
    cut = by_pil(images.repeat(len(crops), 1, 1, 1), lambda image, i: pil_crop(image, crop[i].tolist(), size))
    theirs = torch.where(flip[:, None, None, None], cut.flip(3), cut)
    assert psnr(actual, theirs).min() >= 54
    assert (actual - theirs).abs().max() <= 1.05 * LEVEL
    unflipped = resample.crop_resize(images, crop, size)
    torch.testing.assert_close(
        unflipped, torch.where(flip[:, None, None, None], actual.flip(3), actual), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("operation", "low", "high", "tolerance"),
    [
        (BRIGHTNESS, 0.6, 1.4, 1e-6),
        (CONTRAST, 0.6, 1.4, 0.25 * LEVEL),  # PIL rounds the mean gray, torchvision's float does not
        (SATURATION, 0.6, 1.4, 0.05 * LEVEL),  # torchvision's luma is .2989, .587, .114
        (HUE, -0.1, 0.1, 1e-3),
        (HUE, -0.45, 0.45, 1e-3),
    ],
)
def test_each_colour_operation(photographs: Tensor, operation: int, low: float, high: float, tolerance: float) -> None:
    images = photographs.float() / 255
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(len(images), 1)
    # Whole 255ths of a turn: PIL's hue has no others, torchvision cuts the shift to them.
    values = torch.linspace(low, high, len(images))
    factors[:, operation] = (values * 255).round() / 255 if operation == HUE else values
    actual = augment.jitter(images, factors, torch.arange(4).repeat(len(images), 1))
    given = factors[:, operation].tolist()
    exact = torch.stack([FUNCTIONS[operation](image, value) for image, value in zip(images, given, strict=True)])
    assert (actual - exact).abs().max() <= tolerance
    # a hair more: torchvision truncates shift * 255
    assert (
        psnr(
            actual,
            by_pil(photographs, lambda image, i: FUNCTIONS[operation](image, given[i] + 1e-6 * np.sign(given[i]))),
        ).min()
        >= 45
    )


def test_contrast_pivots_on_pils_rounded_mean(photographs: Tensor) -> None:
    actual = augment.jitter(
        photographs.float() / 255, torch.tensor([[1.0, 0.5, 1.0, 0.0]] * 10), torch.arange(4).repeat(10, 1)
    )
    means = torch.tensor(
        [int(ImageStat.Stat(tf.to_pil_image(image).convert("L")).mean[0] + 0.5) for image in photographs]
    )
    wanted = (photographs + means[:, None, None, None]) / 2 / 255
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5)


def test_grayscale_is_pils(photographs: Tensor) -> None:
    actual = augment.luma(photographs.float() / 255).expand(-1, 3, -1, -1)
    theirs = by_pil(photographs, lambda image, _: tf.to_grayscale(image, 3))
    assert (actual - theirs).abs().max() <= 0.51 * LEVEL


@pytest.mark.parametrize("side", [56, 112])
def test_blur_is_pils(photographs: Tensor, side: int) -> None:
    sigma = torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0, 1.3, 1.5, 1.7, 1.9, 2.0])
    images = photographs[:, :, :side, :side]
    actual = resample.blur(images.float() / 255, sigma)
    theirs = by_pil(images, lambda image, i: image.filter(ImageFilter.GaussianBlur(sigma[i].item())))
    decibels = psnr(actual, theirs)
    # Where a pass moves pixels by less than a level, PIL's rounding swallows part of it.
    assert decibels.min() >= 47 and decibels[sigma >= 0.5].min() >= 50


def test_blur_is_the_released_codes(golden: Path) -> None:
    """White noise, the worst case: PIL rounds after each of its six passes, half a level each.

    At sigma 0.1 a pass moves a pixel by less than that, so PIL swallows most of the blur that we do.
    """
    listing = json.loads((golden / "g8_pil_blur.json").read_text())
    image = np.random.RandomState(listing["seed"]).randint(0, 256, listing["shape"]).astype(np.float32)
    sigma = torch.tensor([case["sigma"] for case in listing["cases"]])
    actual = resample.blur(torch.from_numpy(image).permute(2, 0, 1).repeat(len(sigma), 1, 1, 1), sigma)
    for blurred, case in zip(actual, listing["cases"], strict=True):
        wanted = torch.tensor(case["out"], dtype=torch.float32).view(*listing["shape"]).permute(2, 0, 1)
        assert (blurred - wanted).abs().max() <= (3 if case["sigma"] < 0.5 else 2), case["sigma"]


def test_blur_with_sigma_zero_changes_nothing(photographs: Tensor) -> None:
    images = photographs.float() / 255
    torch.testing.assert_close(resample.blur(images, torch.zeros(len(images))), images, rtol=0, atol=0)


def test_normalise_is_torchvisions(photographs: Tensor) -> None:
    images = photographs.float() / 255
    wanted = tf.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(augment.normalise(images), wanted, rtol=0, atol=1e-6)


# -- orders, and each sample by its own parameters -----------------------------------------------------------------------


def random_factors(count: int) -> Tensor:
    unit = torch.rand(count, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return torch.tensor([1.0, 1.0, 1.0, 0.0]) + unit * torch.tensor([0.4, 0.4, 0.4, 0.1])


def test_jitter_in_each_of_the_24_orders(photographs: Tensor) -> None:
    """One batch with every order. The four commute but for hue and clamping, yet most wrong orders are detected."""
    order = torch.tensor(list(itertools.permutations(range(4))))
    images = photographs[torch.arange(24) % 10, :, 30:90, 30:90].float() / 255
    factors = random_factors(24)
    actual = augment.jitter(images, factors, order)

    def sequential(sample: int, operations: list[int]) -> Tensor:
        image = images[sample]
        for operation in operations:
            image = FUNCTIONS[operation](image, factors[sample, operation].item())
        return image

    errors = [(actual[i] - sequential(i, order[i].tolist())).abs().max().item() for i in range(24)]
    assert max(errors) <= 0.5 * LEVEL
    backwards = [(actual[i] - sequential(i, order[i].tolist()[::-1])).abs().max().item() for i in range(24)]
    assert sum(error > 2 * LEVEL for error in backwards) >= 12


def test_a_batch_equals_its_samples_one_by_one(canvases: tuple[Tensor, Tensor]) -> None:
    images, boxes = canvases
    parameters = augment.draw(AugmentConfig(), 5, 0, torch.arange(10), boxes, colour=AugmentConfig())
    whole = augment.apply(images, parameters, 40)
    for row in range(40):
        alone = Parameters(
            *(getattr(parameters, field.name)[row : row + 1] for field in dataclasses.fields(parameters))
        )
        torch.testing.assert_close(augment.apply(images[row % 10][None], alone, 40)[0], whole[row], rtol=0, atol=2e-5)


def test_all_augmentations_together_equal_pils_in_the_official_order(canvases: tuple[Tensor, Tensor]) -> None:
    """RRC, jitter, gray, blur, flip, normalise (protocols.md §1.2), each patch by PIL.

    PIL rounds to 8 bits (and hue's shift to 255ths) after every operation: 46.3 dB apart on average, 41.9 at worst.
    """
    images, boxes = canvases
    parameters = augment.draw(AugmentConfig(), 11, 3, torch.arange(10), boxes, colour=AugmentConfig())
    actual = augment.apply(images, parameters, 112)

    def reference(image: Image.Image, row: int) -> Image.Image:
        image = pil_crop(image, parameters.crop[row].tolist(), 112)
        for operation in parameters.order[row].tolist():
            image = FUNCTIONS[operation](image, parameters.factors[row, operation].item())
        if parameters.gray[row]:
            image = tf.to_grayscale(image, 3)
        if parameters.sigma[row] > 0:
            image = image.filter(ImageFilter.GaussianBlur(parameters.sigma[row].item()))
        return tf.hflip(image) if parameters.flip[row] else image

    theirs = by_pil(images.repeat(4, 1, 1, 1), reference)
    mean, std = torch.tensor(augment.MEAN).view(3, 1, 1), torch.tensor(augment.STD).view(3, 1, 1)
    decibels = psnr(actual * std + mean, theirs)
    assert decibels.mean() >= 44 and decibels.min() >= 38
