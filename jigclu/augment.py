"""Paper §5.2, the augmentation: batched on the device, with each patch's own parameters.

MoCo v2's list in its order: resized crop, colour jitter (in each sample's own random order), grayscale, blur, flip, normalise
(protocols.md §1.2). Parameters are drawn on the CPU from counters, so they are the same on every device; pixels are worked on
where the canvases lie. Crop-and-resize is two matrix products a patch with PIL's antialiasing triangle filter; the flip is a
reversed filter; blur is two more products with PIL's three box blurs as one matrix. Colours are floats in [0, 1] throughout,
where PIL rounds to 8 bits after every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from jigclu import random

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as torchvision's models expect
LUMA = (0.299, 0.587, 0.114)  # PIL's "L"
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_DRAWS = 36  # uniforms a patch: 20 crop attempts (area, aspect), 2 places, 14 for the rest
_ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after ten


class Recipe(Protocol):
    """What `draw` needs to know; `config.AugmentConfig` is one."""

    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip_probability: float


@dataclass(frozen=True)
class Parameters:
    """One row a patch, B rows in all; CPU tensors until `to`."""

    crop: Tensor  # (B, 4) int64: left, upper, width, height in canvas pixels
    flip: Tensor  # (B,) bool
    factors: (
        Tensor  # (B, 4): brightness, contrast, saturation factors and hue shift in turns; 1, 1, 1, 0 where not jittered
    )
    order: Tensor  # (B, 4) int64: order[b, k] is the k-th operation on sample b
    gray: Tensor  # (B,) bool
    sigma: Tensor  # (B,): blur's sigma in pixels, 0 where not blurred

    def to(self, device: torch.device) -> Parameters:
        return Parameters(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def draw_crops(uniform: Tensor, boxes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """torchvision's RandomResizedCrop inside each box, without its rejection loop's state.

    uniform: (B, 22) in [0, 1): ten pairs (area, aspect), then the two of the place; boxes: (B, 4) left, upper, right, lower.
    Returns (B, 4) int64 left, upper, width, height: the first of ten attempts that
    fits, else the largest central crop of an allowed ratio.
    """
    left, upper = boxes[:, 0], boxes[:, 1]
    width, height = boxes[:, 2] - left, boxes[:, 3] - upper
    area = (width * height).double()[:, None] * (scale[0] + (scale[1] - scale[0]) * uniform[:, 0 : 2 * _ATTEMPTS : 2])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * uniform[:, 1 : 2 * _ATTEMPTS : 2])
    widths, heights = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    first = fits.int().argmax(dim=1, keepdim=True)  # the first that fits; 0 where none does
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
    recipe: Recipe, seed: int, epoch: int, indices: Tensor, boxes: Tensor, purpose: int = random.AUGMENT
) -> Parameters:
    """Parameters of every patch of a batch, position-major (patch id = position * N + image).

    indices: (N,) image indices, boxes: (N, P, 4) in canvas pixels. A recipe without colour fields (the linear probe's) draws
    crop and flip alone.
    """
    count, patches = boxes.shape[:2]
    u = random.uniforms(seed, purpose, epoch, indices, patches, _DRAWS).transpose(0, 1).reshape(patches * count, _DRAWS)
    crop = draw_crops(u[:, :22], boxes.transpose(0, 1).reshape(-1, 4), recipe.crop_scale, recipe.crop_ratio)
    flip = u[:, 22] < recipe.flip_probability
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64).repeat(len(u), 1)
    order = torch.argsort(u[:, 28:32], dim=1, stable=True)
    gray, sigma = torch.zeros(len(u), dtype=torch.bool), torch.zeros(len(u), dtype=torch.float64)
    if hasattr(recipe, "jitter_probability"):
        jittered = u[:, 23] < recipe.jitter_probability
        widths = torch.tensor([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue], dtype=torch.float64)  # type: ignore[attr-defined]
        low = torch.clamp(
            torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) - widths,
            min=torch.tensor([0.0, 0.0, 0.0, -0.5], dtype=torch.float64),
        )
        high = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) + widths
        factors = torch.where(jittered[:, None], low + (high - low) * u[:, 24:28], factors)
        gray = u[:, 32] < recipe.gray_probability  # type: ignore[attr-defined]
        smallest, largest = recipe.blur_sigma  # type: ignore[attr-defined]
        blurred = u[:, 33] < recipe.blur_probability  # type: ignore[attr-defined]
        sigma = torch.where(blurred, smallest + (largest - smallest) * u[:, 34], sigma)
    return Parameters(crop, flip, factors.float(), order, gray, sigma.float())


# -- crop and resize -----------------------------------------------------------------------------------------------------


def resize_weights(
    start: Tensor, length: Tensor, source: int, target: int, flip: Tensor | None = None, limit: Tensor | None = None
) -> Tensor:
    """PIL's antialiased bilinear resize of [start, start + length) to `target` pixels as (B, target, source) matrices.

    The triangle filter is as wide as the reduction (never narrower than a pixel). It sees nothing outside the crop, or, with
    `limit` (B,), all of [0, limit). `flip` (B,) reverses the target pixels.
    """
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / target
    support = scale.clamp(min=1.0)
    out = torch.arange(target, device=start.device, dtype=torch.float32)[None, :, None]
    if flip is not None:
        out = torch.where(flip[:, None, None], target - 1 - out, out)
    place = torch.arange(source, device=start.device, dtype=torch.float32)[None, None, :]
    pixel = place - start
    weights = (1 - ((pixel + 0.5 - (out + 0.5) * scale) / support).abs()).clamp(min=0)
    seen = (pixel >= 0) & (pixel < length) if limit is None else place < limit.float()[:, None, None]
    weights = weights * seen
    return weights / weights.sum(dim=2, keepdim=True)


def crop_resize(canvases: Tensor, crop: Tensor, size: int, flip: Tensor | None = None, white: float = 255.0) -> Tensor:
    """canvases (N, 3, S, S) uint8 or float in [0, white], crop (P*N, 4) position-major -> (P*N, 3, size, size) float in [0, 1].

    A canvas is read once for its P patches: all its vertical filters act in one product.
    """
    count, channels, side = canvases.shape[0], canvases.shape[1], canvases.shape[-1]
    patches = len(crop) // count
    pixels = canvases.transpose(1, 2).reshape(count, side, channels * side).float()  # (N, y, c*x)
    vertical = resize_weights(crop[:, 1], crop[:, 3], side, size) / white  # (P*N, size, S)
    vertical = vertical.view(patches, count, size, side).transpose(0, 1).reshape(count, patches * size, side)
    rows = (
        torch.bmm(vertical, pixels)
        .view(count, patches, size * channels, side)
        .transpose(0, 1)
        .reshape(-1, size * channels, side)
    )
    horizontal = resize_weights(crop[:, 0], crop[:, 2], side, size, flip)
    squares = torch.bmm(rows, horizontal.transpose(1, 2))  # (P*N, size*c, size)
    return squares.view(-1, size, channels, size).transpose(1, 2).contiguous()


# -- colour --------------------------------------------------------------------------------------------------------------


def luma(images: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, 1, h, w), PIL's grayscale."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))[:, None]


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of (B, 3, h, w) in [0, 1] by `shift` (B,) in turns: HSV and back in its closed form."""
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    safe = torch.where(chroma > 0, chroma, 1)
    red, green, blue = images.unbind(1)
    sector = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = sector + 6 * shift[:, None, None]
    # Channel n of HSV -> RGB: v - c * max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6, n = 5, 3, 1.
    offsets = images.new_tensor([5.0, 3.0, 1.0])[None, :, None, None]
    k = (offsets + sector[:, None]) % 6
    return high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of (B, 3, h, w) in [0, 1], each sample by its own factors in its own order.

    The first three are one blend, f * x + (1 - f) * other, where other is black, the mean gray or the gray image.
    `order` may lie on the CPU: which samples turn their hue at which step is then known without waiting for the device.
    """
    steps = torch.arange(len(images))
    device_order = order.to(images.device, non_blocking=True)
    for step in range(4):
        operation = device_order[:, step]
        gray = luma(images)
        factor = factors.gather(1, operation[:, None])[:, :, None, None]
        factor = torch.where((operation == HUE)[:, None, None, None], 1.0, factor)
        # PIL rounds the mean gray to 8 bits.
        mean = ((gray.mean(dim=(2, 3), keepdim=True) * 255 + 0.5).floor() / 255) * (operation == CONTRAST)[
            :, None, None, None
        ]
        other = mean + gray * (operation == SATURATION)[:, None, None, None]
        images = (factor * images + (1 - factor) * other).clamp(0, 1)
        turning = steps[order[:, step].cpu() == HUE].to(images.device, non_blocking=True)
        images[turning] = shift_hue(images[turning], factors[turning, HUE])
    return images


# -- blur ----------------------------------------------------------------------------------------------------------------


def blur_weights(sigma: Tensor, size: int) -> Tensor:
    """PIL's GaussianBlur along one side as (B, size, size) matrices: three extended box blurs, edges repeated.

    The box of radius l + a has the Gaussian's variance (Gwosdek et al., SSVM 2011, which PIL follows). sigma 0: identity.
    """
    variance = (sigma.double() ** 2 / 3)[:, None]
    whole = ((torch.sqrt(12 * variance + 1) - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    length = 2 * (whole + part) + 1
    reach = int(whole.max()) + 1 if sigma.numel() else 1
    offsets = torch.arange(-reach, reach + 1, device=sigma.device)
    taps = ((offsets.abs() <= whole) + part * (offsets.abs() == whole + 1)) / length  # (B, 2 reach + 1)
    place = torch.arange(size, device=sigma.device)
    columns = (place[:, None] + offsets[None, :]).clamp(0, size - 1)  # (size, taps)
    box = torch.zeros(len(sigma), size, size, dtype=torch.float64, device=sigma.device)
    box.scatter_add_(2, columns.expand(len(sigma), -1, -1), taps[:, None, :].expand(-1, size, -1))
    box = box.float()
    return torch.bmm(box, torch.bmm(box, box))


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B, c, h, w), square, by sigma (B,) pixels each."""
    weights = blur_weights(sigma, images.shape[-1])[:, None]
    return weights @ images @ weights.transpose(2, 3)


# -- the whole list ------------------------------------------------------------------------------------------------------


def normalise(images: Tensor) -> Tensor:
    """[0, 1] RGB -> zero mean, unit deviation in ImageNet's statistics."""
    mean, std = images.new_tensor(MEAN)[:, None, None], images.new_tensor(STD)[:, None, None]
    return (images - mean) / std


def to_pixels(normalised: Tensor) -> Tensor:
    """The inverse of `normalise`, clamped to [0, 1], float32: for people to look at."""
    images = normalised.float()
    mean, std = images.new_tensor(MEAN)[:, None, None], images.new_tensor(STD)[:, None, None]
    return (images * std + mean).clamp(0, 1)


def apply(canvases: Tensor, parameters: Parameters, size: int) -> Tensor:
    """canvases (N, 3, S, S) uint8 and parameters of P*N patches (position-major) -> (P*N, 3, size, size) normalised float32."""
    return normalise(distort(canvases, parameters, size))


def distort(canvases: Tensor, parameters: Parameters, size: int) -> Tensor:
    """`apply` before it normalises: float32 in [0, 1]."""
    device = canvases.device
    moved = parameters.to(device)
    images = crop_resize(canvases, moved.crop, size, moved.flip)
    jittered = ((parameters.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(dim=1)).nonzero()[:, 0]
    if len(jittered):
        rows = jittered.to(device, non_blocking=True)
        images[rows] = jitter(images[rows], moved.factors[rows], parameters.order[jittered])
    images = torch.where(moved.gray[:, None, None, None], luma(images), images)
    blurred = parameters.sigma.nonzero()[:, 0]
    if len(blurred):
        rows = blurred.to(device, non_blocking=True)
        images[rows] = blur(images[rows], moved.sigma[rows])
    return images
