"""Features of a frozen backbone, batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from jigclu.config import EvaluationConfig
from jigclu.data.canvases import CanvasDataset
from jigclu.data.loader import Batch, Unreadable, batches, loader_workers
from jigclu.evaluation.transforms import centre_crop
from jigclu.network import Backbone
from jigclu.training.session import TrainingError

log = logging.getLogger("jigclu")


class Extractor:
    """A frozen backbone in eval mode, on its device and in its precision. `on_progress` is called with a line per batch."""

    def __init__(
        self,
        backbone: Backbone,
        config: EvaluationConfig,
        device: torch.device,
        on_progress: Callable[[str], None] = log.debug,
    ):
        self.config, self.device, self.on_progress = config, device, on_progress
        self.unreadable: dict[str, Unreadable] = {}  # by data fingerprint: counted over all passes, logged once
        backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone: Backbone = backbone.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, h, w) normalised -> (N, dim) float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return self.backbone(images.contiguous(memory_format=torch.channels_last)).float()

    @torch.no_grad()
    def calibrate(self, dataset: CanvasDataset, order: list[int]) -> None:
        """Replace the running statistics of all batch norms by their mean over the batches of the images in `order`.

        The images pass once in train mode under the test transform; weights stay as they are.
        """
        norms = [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a mean over all batches instead of a moving one
        self.backbone.train()
        for batch in self.batches(dataset, order):
            self(centre_crop(batch.canvas, batch.sizes, self.config.resize, self.config.image_size))
        self.backbone.eval()
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum

    def test_features(self, dataset: CanvasDataset, chosen: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Features (n, dim) and labels (n,) of a split, or of its images at `chosen`, under the test transform, on the device."""
        collected = [
            (self(centre_crop(batch.canvas, batch.sizes, self.config.resize, self.config.image_size)), batch.labels)
            for batch in self.batches(dataset, range(len(dataset)) if chosen is None else chosen)
        ]
        features = self.finite(torch.cat([f for f, _ in collected]))
        return features, torch.cat([labels for _, labels in collected]).to(self.device)

    def finite(self, features: Tensor) -> Tensor:
        """The same features. Raises TrainingError if one is not finite: accuracies would still be numbers."""
        if broken := int((~features.isfinite()).any(1).sum()):
            raise TrainingError(f"the encoder gives {broken} of {len(features)} images features that are not finite")
        return features

    def batches(self, dataset: CanvasDataset, order: range | list[int]) -> Iterator[Batch]:
        """The images of `order`, canvases on the device, in the config's batches."""
        size = self.config.batch_size
        groups = [list(order[start : start + size]) for start in range(0, len(order), size)]
        workers = loader_workers(self.config.runtime, self.device)
        unreadable = self.unreadable.setdefault(dataset.fingerprint, Unreadable())
        stream = batches(dataset, groups, workers, unreadable, substitute=False, device=self.device)
        for step, batch in enumerate(stream):
            self.on_progress(f"features: {step * size} of {len(order)} images")
            if not len(batch.labels):  # none of the batch's files is readable
                continue
            yield batch._replace(canvas=batch.canvas.to(self.device, non_blocking=True))
