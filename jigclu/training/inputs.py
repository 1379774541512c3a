"""From decoded images to a network's input: views of whole images, or patches, in any order of split and augmentation."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from jigclu import augment
from jigclu.config import PretrainConfig
from jigclu.config.methods import JigCluConfig
from jigclu.data.loader import Batch
from jigclu.patches import Box, split_boxes
from jigclu.resample import crop_resize


def full_boxes(sizes: Tensor, times: int = 1) -> Tensor:
    """Image sizes (N, 2) [height, width] -> (N, times, 4): the full-image box, repeated `times`."""
    zero = torch.zeros_like(sizes[:, 0])
    return torch.stack((zero, zero, sizes[:, 1], sizes[:, 0]), 1)[:, None].expand(-1, times, -1)


def split(sizes: Tensor, m: int, extend: float) -> Tensor:
    """Image sizes (N, 2) [height, width] -> (N, m*m, 4) left, upper, right, lower: the boxes of §3.1."""
    return torch.tensor([_boxes(width, height, m, extend) for height, width in sizes.tolist()])


@lru_cache(maxsize=4096)
def _boxes(width: int, height: int, m: int, extend: float) -> list[Box]:
    return split_boxes(width, height, m, extend)


def views(config: PretrainConfig, count: int, batch: Batch, seed: int, epoch: int, device: torch.device) -> Tensor:
    """`count` augmented views of every image: (count * n, 3, S, S) normalised, view 0 of all images first."""
    boxes = full_boxes(batch.sizes, count)
    parameters = augment.draw(config.augment, seed, epoch, batch.indices, boxes, colour=config.augment)
    images = augment.apply(batch.canvas.to(device, non_blocking=True), parameters, config.image_size)
    return images.contiguous(memory_format=torch.channels_last)


class Patches:
    """Turns a batch into augmented patches; `method.augment` says when the augmentation comes (paper §5.2, Table 7).

    All three orders draw from the same counters, keyed by image and position. A parameter drawn once per image is drawn at
    position 0, so `before` and `during` crop an image alike.
    """

    def __init__(self, config: PretrainConfig, method: JigCluConfig, seed: int, device: torch.device):
        self.recipe, self.image_size, self.seed, self.device = config.augment, config.image_size, seed, device
        self.m, self.extend = method.m, method.reach
        self._augmented = {"after": self._after, "during": self._during, "before": self._before}[method.augment]

    def __call__(self, batch: Batch, epoch: int, size: int) -> Tensor:
        """n images -> (m*m*n, 3, size, size) normalised, position-major, on the device."""
        return self._augmented(batch, batch.canvas.to(self.device, non_blocking=True), epoch, size)

    def plain(self, canvases: Tensor, sizes: Tensor, size: int, white: float = 255.0) -> Tensor:
        """Plain patches: canvases (n, 3, S, S) in [0, white], sizes (n, 2) -> (m*m*n, 3, size, size) in [0, 1]."""
        boxes = split(sizes, self.m, self.extend).transpose(0, 1).reshape(-1, 4)
        crops = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
        return crop_resize(canvases, crops.to(canvases.device), size, white=white)

    def _after(self, batch: Batch, canvases: Tensor, epoch: int, size: int) -> Tensor:
        """Table 7, "Aug after split": every patch gets all augmentations."""
        return augment.apply(canvases, self._draw(batch, split(batch.sizes, self.m, self.extend), epoch), size)

    def _during(self, batch: Batch, canvases: Tensor, epoch: int, size: int) -> Tensor:
        """Table 7, "Split during aug": each image is cropped once and the crop is split; every patch gets its own colours,
        blur and flip.
        """
        boxes = full_boxes(batch.sizes, self.m * self.m)
        drawn = self._draw(batch, boxes, epoch)
        left_upper, width_height = drawn.crop[: len(boxes)].split(2, dim=1)
        parts = split(width_height.flip(1), self.m, self.extend)
        crops = torch.cat((parts[..., :2] + left_upper[:, None], parts[..., 2:] - parts[..., :2]), 2)
        return augment.apply(canvases, replace(drawn, crop=crops.transpose(0, 1).reshape(-1, 4)), size)

    def _before(self, batch: Batch, canvases: Tensor, epoch: int, size: int) -> Tensor:
        """Table 7, "Aug before split": the image gets all augmentations, and the resulting square of `image_size` is split."""
        images = augment.distort(canvases, self._draw(batch, full_boxes(batch.sizes), epoch), self.image_size)
        return augment.normalise(self.plain(images, torch.full_like(batch.sizes, self.image_size), size, white=1.0))

    def _draw(self, batch: Batch, boxes: Tensor, epoch: int) -> augment.Parameters:
        return augment.draw(self.recipe, self.seed, epoch, batch.indices, boxes, colour=self.recipe)
