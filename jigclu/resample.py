"""Crop, resize and blur as weighted sums of pixels along one axis at a time, with PIL's own filters (anchors.md §3.3).

Every output pixel sees a few input pixels, its taps. Along the first axis all patches of a canvas share it; along the second the
weights form a dense matrix, applied as a matrix product. A flip is a reversed filter and costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of float pixels processed at once: what fits a core's cache, or is small against a training step's memory.
_CPU_BYTES, _GPU_BYTES = 2 << 20, 256 << 20


class Taps(NamedTuple):
    """Which pixels of one axis each of `size` output pixels sees, and how much of each."""

    position: Tensor  # (B, size, taps) int64, in [0, source)
    weight: Tensor  # (B, size, taps) float32, sums to 1

    def matrix(self, source: int) -> Tensor:
        """The same weights as (B, source, size): pixels (..., source) @ matrix are the resampled ones."""
        count, size = self.position.shape[:2]
        dense = self.weight.new_zeros(count, size, source)
        return dense.scatter_add_(2, self.position, self.weight).transpose(1, 2)


def triangle(
    start: Tensor, length: Tensor, source: int, size: int, flip: Tensor | None = None, limit: Tensor | None = None
) -> Taps:
    """PIL's antialiased bilinear resize of [start, start + length) to `size` pixels, on an axis of `source` pixels.

    The triangle filter is as wide as the reduction (never narrower than a pixel). It sees nothing outside the crop or, with
    `limit` (B,), nothing outside [0, limit). `flip` (B,) reverses the output pixels.
    """
    start, length = start.float()[:, None], length.float()[:, None]
    scale = length / size
    support = scale.clamp(min=1.0)
    out = torch.arange(size, device=start.device, dtype=torch.float32)[None]
    if flip is not None:
        out = torch.where(flip[:, None], size - 1 - out, out)
    centre = start + (out + 0.5) * scale
    # Pixel k spans k to k + 1. On a GPU the longest crop is not computed: reading it would mean waiting for the device.
    longest = source if length.is_cuda else math.ceil(length.max()) if len(length) else size
    taps = 2 * max(1, -(-longest // size)) + 1
    pixel = (centre - support + 0.5).floor()[..., None] + torch.arange(taps, device=start.device)
    weight = (1 - ((pixel + 0.5 - centre[..., None]) / support[..., None]).abs()).clamp(min=0)
    first, past = (start, start + length) if limit is None else (torch.zeros_like(start), limit[:, None])
    weight = weight * ((pixel >= first[..., None]) & (pixel < past[..., None]))
    return Taps(pixel.long().clamp(0, source - 1), weight / weight.sum(dim=2, keepdim=True))


def crop_resize(canvases: Tensor, crop: Tensor, size: int, flip: Tensor | None = None, white: float = 255.0) -> Tensor:
    """canvases (N, 3, S, S) uint8 or float in [0, white], crop (P*N, 4) position-major -> (P*N, 3, size, size) float in [0, 1]."""
    side = canvases.shape[-1]
    rows = triangle(crop[:, 1], crop[:, 3], side, size)
    columns = triangle(crop[:, 0], crop[:, 2], side, size, flip)
    return resample(canvases, rows, columns, white)


def resample(canvases: Tensor, rows: Taps, columns: Taps, white: float = 255.0) -> Tensor:
    """canvases (N, 3, S, S) in [0, white] and the taps of P*N outputs, position-major -> (P*N, 3, size, size) in [0, 1]."""
    count, channels, side = canvases.shape[:3]
    size, patches = rows.position.shape[1], len(rows.position) // count
    out = torch.empty(patches, count, channels, size, size, device=canvases.device)
    rows, columns = _by_image(rows, count), _by_image(columns, count)
    rows = rows._replace(weight=rows.weight / white)
    budget = _GPU_BYTES if canvases.is_cuda else _CPU_BYTES
    step = max(1, budget // (4 * channels * side * max(side, patches * size)))
    for start in range(0, count, step):
        chunk = slice(start, start + step)
        chunk_taps = [Taps(*(part[chunk].flatten(0, 1) for part in taps)) for taps in (rows, columns)]
        resampled = _resample(canvases[chunk], chunk_taps[0], chunk_taps[1], dense=canvases.is_cuda)
        out[:, chunk] = resampled.unflatten(0, (-1, patches)).permute(1, 0, 3, 2, 4)
    return out.flatten(0, 1)


def _by_image(taps: Taps, count: int) -> Taps:
    """(P*N, size, taps) position-major -> (N, P, size, taps)."""
    return Taps(*(part.unflatten(0, (-1, count)).transpose(0, 1).contiguous() for part in taps))


def _resample(canvases: Tensor, rows: Taps, columns: Taps, dense: bool) -> Tensor:
    """(n, 3, S, S) and the taps of n*P outputs, image by image -> (n*P, size, 3, size).

    `dense`: also resample the rows by a matrix product. A GPU's matrix units are faster at that than at gathering; a CPU is not.
    """
    count, channels, side = canvases.shape[:3]
    outputs, size, taps = rows.position.shape
    pixels = torch.empty(count, side, channels, side, device=canvases.device).copy_(canvases.transpose(1, 2))
    with _tensor_cores(canvases):
        if dense:
            matrix = rows.matrix(side).transpose(1, 2).view(count, -1, side)
            picked = torch.bmm(matrix, pixels.view(count, side, -1))
        else:  # each output row is a weighted sum of a few canvas rows
            first = torch.arange(0, count * side, side).repeat_interleave(outputs // count)[:, None, None]
            picked = F.embedding_bag(
                (rows.position + first).view(-1, taps), pixels.view(-1, channels * side), mode="sum",
                per_sample_weights=rows.weight.view(-1, taps),
            )  # fmt: skip
        squares = torch.bmm(picked.view(outputs, size * channels, side), columns.matrix(side))
    return squares.view(outputs, size, channels, size)


@contextmanager
def _tensor_cores(like: Tensor) -> Iterator[None]:
    """TF32 for float32 products on a GPU: its 11 bits hold a pixel's 8 exactly, and round a weight far less than PIL does."""
    before = torch.get_float32_matmul_precision()
    if like.is_cuda:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -- blur ----------------------------------------------------------------------------------------------------------------


def blur_weights(sigma: Tensor, size: int, largest: float | None = None) -> Tensor:
    """PIL's GaussianBlur along one side as (B, size, size) matrices: three extended box blurs, edges repeated.

    `largest`: an upper bound of sigma; giving it avoids a wait for the device.
    The box of radius l + a has the Gaussian's variance (Gwosdek et al., SSVM 2011, which PIL follows). sigma 0: identity.
    """
    if largest is None:
        largest = float(sigma.max()) if sigma.numel() else 0.0
    variance = (sigma.double() ** 2 / 3)[:, None]
    whole = ((torch.sqrt(12 * variance + 1) - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    length = 2 * (whole + part) + 1
    reach = int((math.sqrt(4 * largest**2 + 1) - 1) / 2) + 1
    offsets = torch.arange(-reach, reach + 1, device=sigma.device)
    taps = ((offsets.abs() <= whole) + part * (offsets.abs() == whole + 1)) / length  # (B, 2 reach + 1)
    position = torch.arange(size, device=sigma.device)
    columns = (position[:, None] + offsets[None, :]).clamp(0, size - 1)  # (size, taps)
    box = torch.zeros(len(sigma), size, size, dtype=torch.float64, device=sigma.device)
    box.scatter_add_(2, columns.expand(len(sigma), -1, -1), taps[:, None, :].expand(-1, size, -1))
    box = box.float()
    return torch.bmm(box, torch.bmm(box, box))


def blur(images: Tensor, sigma: Tensor, largest: float | None = None) -> Tensor:
    """Gaussian blur of (B, c, h, h) by sigma (B,) pixels each, at most `largest`."""
    weights = blur_weights(sigma, images.shape[-1], largest)[:, None]
    return weights @ images @ weights.transpose(2, 3)
