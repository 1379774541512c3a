"""Paper §5.2, the augmentation: batched on the device, with each patch's own parameters.

MoCo v2's list in its order: resized crop, colour jitter (in each sample's own random order), grayscale, blur, flip, normalise
(protocols.md §1.2). Parameters are drawn on the CPU from counters, so they are the same on every device; pixels are processed on
the canvases' device: crop, resize, flip and blur by resample.py. Colours are floats in [0, 1] throughout, whereas PIL rounds to
8 bits after every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from jigclu import counter_rng
from jigclu.resample import blur, crop_resize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as torchvision's models expect
LUMA = (0.299, 0.587, 0.114)  # PIL's "L"
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after ten


class Slot:
    """What each of a patch's uniforms decides. The values are the random stream: changing one alters every augmentation."""

    COUNT = 36  # the last one is unused
    CROP = slice(0, 22)  # ten attempts (area, aspect), then the crop's x and y
    FLIP = 22
    JITTER = 23
    FACTORS = slice(24, 28)  # brightness, contrast, saturation, hue
    ORDER = slice(28, 32)  # sorting them gives the order of the four colour operations
    GRAY = 32
    BLUR = 33
    SIGMA = 34


class CropRecipe(Protocol):
    """Resized crop and flip, as the linear probe's `config.LinearConfig` has them."""

    crop_scale: tuple[float, float]  # crop area as a fraction of the box
    crop_ratio: tuple[float, float]  # width / height
    flip_probability: float


class ColourRecipe(CropRecipe, Protocol):
    """Crop, flip, colours and blur, as the pretraining's `config.AugmentConfig` has them."""

    brightness: float
    contrast: float
    saturation: float
    hue: float  # turns
    jitter_probability: float
    gray_probability: float
    blur_sigma: tuple[float, float]  # pixels
    blur_probability: float


@dataclass(frozen=True)
class Parameters:
    """One row per patch, B rows in all; CPU tensors until `to`."""

    crop: Tensor  # (B, 4) int64: left, upper, width, height in canvas pixels
    flip: Tensor  # (B,) bool
    factors: Tensor  # (B, 4): brightness, contrast, saturation factors, hue shift in turns; 1, 1, 1, 0 means no jitter
    order: Tensor  # (B, 4) int64: order[b, k] is the k-th operation on sample b
    gray: Tensor  # (B,) bool
    sigma: Tensor  # (B,): blur's sigma in pixels, 0 means no blur

    def to(self, device: torch.device) -> Parameters:
        return Parameters(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def draw_crops(uniform: Tensor, boxes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """torchvision's RandomResizedCrop inside each box, without its rejection loop's state.

    uniform: (B, 22) in [0, 1): ten pairs (area, aspect), then the crop's x and y; boxes: (B, 4) left, upper, right, lower.
    Returns (B, 4) int64 left, upper, width, height: the first of ten attempts that fits, else the largest central crop of an
    allowed ratio.
    """
    left, upper = boxes[:, 0], boxes[:, 1]
    width, height = boxes[:, 2] - left, boxes[:, 3] - upper
    area = (width * height).double()[:, None] * (scale[0] + (scale[1] - scale[0]) * uniform[:, 0 : 2 * _ATTEMPTS : 2])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * uniform[:, 1 : 2 * _ATTEMPTS : 2])
    widths, heights = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    first = fits.int().argmax(dim=1, keepdim=True)  # the first that fits; 0 if none does
    w, h = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    x = (uniform[:, -2] * (width - w + 1)).long()
    y = (uniform[:, -1] * (height - h + 1)).long()
    shape = width / height
    central_w = torch.where(shape > ratio[1], (height * ratio[1]).round().long(), width)
    central_h = torch.where(shape < ratio[0], (width / ratio[0]).round().long(), height)
    found = fits.any(dim=1)
    w, h = torch.where(found, w, central_w), torch.where(found, h, central_h)
    x, y = torch.where(found, x, (width - w) // 2), torch.where(found, y, (height - h) // 2)
    return torch.stack((left + x, upper + y, w, h), 1)


def draw(
    recipe: CropRecipe,
    seed: int,
    epoch: int,
    indices: Tensor,
    boxes: Tensor,
    purpose: int = counter_rng.AUGMENT,
    *,
    colour: ColourRecipe | None,
) -> Parameters:
    """Parameters of every patch of a batch, position-major (patch id = position * N + image).

    indices: (N,) image indices, boxes: (N, P, 4) in canvas pixels. `colour` None (the linear probe): crop and flip only.
    """
    count, patches = boxes.shape[:2]
    u = counter_rng.uniforms(seed, purpose, epoch, indices, patches, Slot.COUNT)
    u = u.transpose(0, 1).reshape(patches * count, Slot.COUNT)
    crop = draw_crops(u[:, Slot.CROP], boxes.transpose(0, 1).reshape(-1, 4), recipe.crop_scale, recipe.crop_ratio)
    flip = u[:, Slot.FLIP] < recipe.flip_probability
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    factors = neutral.repeat(len(u), 1)
    order = torch.argsort(u[:, Slot.ORDER], dim=1, stable=True)
    gray, sigma = torch.zeros(len(u), dtype=torch.bool), torch.zeros(len(u), dtype=torch.float64)
    if colour is not None:
        jittered = u[:, Slot.JITTER] < colour.jitter_probability
        widths = torch.tensor([colour.brightness, colour.contrast, colour.saturation, colour.hue], dtype=torch.float64)
        low = torch.clamp(neutral - widths, min=torch.tensor([0.0, 0.0, 0.0, -0.5], dtype=torch.float64))
        high = neutral + widths
        factors = torch.where(jittered[:, None], low + (high - low) * u[:, Slot.FACTORS], factors)
        gray = u[:, Slot.GRAY] < colour.gray_probability
        smallest, largest = colour.blur_sigma
        blurred = u[:, Slot.BLUR] < colour.blur_probability
        sigma = torch.where(blurred, smallest + (largest - smallest) * u[:, Slot.SIGMA], sigma)
    return Parameters(crop, flip, factors.float(), order, gray, sigma.float())


# -- colour --------------------------------------------------------------------------------------------------------------


def luma(images: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, 1, h, w), PIL's grayscale."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))[:, None]


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of (B, 3, h, w) in [0, 1] by `shift` (B,) in turns: RGB -> HSV -> RGB in closed form."""
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    part = chroma.clamp(min=1e-9).mul_(6).reciprocal_()  # a sixth of a turn; gray has no hue, and chroma 0 below
    red, green, blue = images.unbind(1)
    third = images.new_tensor(1 / 3)
    hue = torch.where(
        high == red,
        (green - blue) * part,
        torch.where(high == green, torch.addcmul(third, blue - red, part), torch.addcmul(2 * third, red - green, part)),
    ).add_(shift[:, None, None])
    # Channel n of HSV -> RGB: v - c * max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6, n = 5, 3, 1.
    # min(k, 4 - k) = 2 - |k - 2|.
    offset = images.new_tensor([5 / 6 + 1, 3 / 6 + 1, 1 / 6 + 1])[
        :, None, None
    ]  # one turn more, so nothing is negative
    k = (hue[:, None] + offset).frac_()
    less = k.sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(high[:, None], chroma[:, None], less, value=-1)


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of (B, 3, h, w) in [0, 1], each sample by its own factors in its own order.

    Brightness, contrast and saturation are f * x + (1 - f) * (black, mean gray, gray): a product with a 3 x 3 matrix each, plus
    contrast's mean. With `order` on the CPU, the samples to change at each step are known without waiting for the device.
    """
    count, channels, height, width = images.shape
    order = order.cpu()
    weights = images.new_tensor(LUMA)
    identity = torch.eye(channels, device=images.device).expand(count, -1, -1)
    scaled = [factors[:, operation, None, None] * identity for operation in range(HUE)]
    scaled[SATURATION] = scaled[SATURATION] + (1 - factors[:, SATURATION, None, None]) * weights
    matrices = torch.stack([*scaled, identity])  # (operation, B, 3, 3)
    pixels, samples = images.flatten(2), torch.arange(count, device=images.device)
    for step in range(4):
        operation = order[:, step].to(images.device, non_blocking=True)
        mean = ((pixels.mean(dim=2) @ weights) * 255 + 0.5).floor() / 255  # PIL rounds it to 8 bits
        bias = torch.where(operation == CONTRAST, mean * (1 - factors[:, CONTRAST]), 0)[:, None, None]
        chosen = matrices[operation, samples]
        pixels = torch.baddbmm(bias.expand(-1, channels, 1), chosen, pixels).clamp_(0, 1)
        turning = (order[:, step] == HUE).nonzero()[:, 0].to(images.device, non_blocking=True)
        turned = shift_hue(pixels.index_select(0, turning).view(-1, channels, height, width), factors[turning, HUE])
        pixels.index_copy_(0, turning, turned.flatten(2))
    return pixels.view(images.shape)


# -- the whole list ------------------------------------------------------------------------------------------------------


def normalise(images: Tensor, out: Tensor | None = None) -> Tensor:
    """[0, 1] RGB -> zero mean and unit deviation by ImageNet's statistics, in one pass; `out` may be `images`."""
    scale = 1 / images.new_tensor(STD)[:, None, None]
    shift = -images.new_tensor(MEAN)[:, None, None] * scale
    return torch.addcmul(shift, images, scale, out=out)


def to_pixels(normalised: Tensor) -> Tensor:
    """The inverse of `normalise`, clamped to [0, 1], float32: for display."""
    images = normalised.float()
    mean, std = images.new_tensor(MEAN)[:, None, None], images.new_tensor(STD)[:, None, None]
    return (images * std + mean).clamp(0, 1)


def apply(canvases: Tensor, parameters: Parameters, size: int) -> Tensor:
    """canvases (N, 3, S, S) uint8 and parameters of P*N patches (position-major) -> (P*N, 3, size, size) normalised float32."""
    images = distort(canvases, parameters, size)
    return normalise(images, out=images)


def distort(canvases: Tensor, parameters: Parameters, size: int) -> Tensor:
    """`apply` without the normalisation: float32 in [0, 1]."""
    device = canvases.device
    on_device = parameters.to(device)
    images = crop_resize(canvases, on_device.crop, size, on_device.flip)

    def change_selected(mask: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Apply `change` to the images of the mask (B,) only; the mask is on the CPU, so there is no wait for the device."""
        rows = mask.nonzero()[:, 0]
        if len(rows):
            rows = rows.to(device, non_blocking=True)
            images.index_copy_(0, rows, change(images.index_select(0, rows), rows))

    jittered = (parameters.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(dim=1)
    change_selected(jittered, lambda seen, rows: jitter(seen, on_device.factors[rows], parameters.order[jittered]))
    change_selected(parameters.gray, lambda seen, rows: luma(seen).expand_as(seen))
    largest = float(parameters.sigma.max()) if len(parameters.sigma) else 0.0
    change_selected(parameters.sigma > 0, lambda seen, rows: blur(seen, on_device.sigma[rows], largest))
    return images
