"""What every evaluation does: the test transform, and features of a frozen backbone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jigclu import augment, random
from jigclu.config import EvaluationConfig, LinearConfig, RuntimeConfig
from jigclu.data.datasets import CanvasDataset
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.network import Backbone

log = logging.getLogger("jigclu")


def loader_workers(runtime: RuntimeConfig, device: torch.device) -> int:
    """Decoding processes: as configured, else as many as the CPU threads of a GPU job, else one beside a CPU job."""
    if runtime.workers is not None:
        return runtime.workers
    return torch.get_num_threads() if device.type == "cuda" else 1


def centre_crop(canvas: Tensor, sizes: Tensor, resize: int, size: int) -> Tensor:
    """Resize the shorter side to `resize`, crop the centre `size` x `size`, normalise (protocols.md §2.1 "test").

    canvas (N, 3, S, S) uint8 with the images' (height, width) in sizes (N, 2). Whole and crop are one resampling: the
    filter sees past the crop's border, as it does when a whole image is resized before it is cropped.
    """
    side = canvas.shape[-1]
    shorter = sizes.min(dim=1).values
    axes = []
    for extent in (sizes[:, 0], sizes[:, 1]):
        # torchvision truncates the longer side; in integers, for floats would lose a pixel here and there.
        resized = resize * extent // shorter
        step = extent.double() / resized
        start = ((resized - size) / 2).round() * step
        axes.append(augment.resize_weights(start, size * step, side, size, limit=extent))
    vertical, horizontal = (axis.to(canvas.device) for axis in axes)
    images = vertical[:, None] @ canvas.float() @ horizontal.transpose(1, 2)[:, None] / 255
    return augment.normalise(images)


def random_crop(config: LinearConfig, canvas: Tensor, sizes: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
    """Resized crop and flip of the whole image, normalised (protocols.md §2.1 "train aug")."""
    boxes = torch.stack((torch.zeros_like(sizes[:, 0]), torch.zeros_like(sizes[:, 0]), sizes[:, 1], sizes[:, 0]), 1)[
        :, None
    ]
    parameters = augment.draw(config, seed, epoch, indices, boxes, purpose=random.PROBE)
    return augment.apply(canvas, parameters, config.image_size)


class Extractor:
    """A frozen backbone in eval mode, on its device and in its precision. `tell` hears how far a pass has come."""

    def __init__(
        self,
        backbone: Backbone,
        config: EvaluationConfig,
        device: torch.device,
        tell: Callable[[str], None] = log.debug,
    ):
        self.config, self.device, self.tell = config, device, tell
        self.unreadable: dict[str, Unreadable] = {}  # by data fingerprint: counted over all passes, logged once
        backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone: Backbone = backbone.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, h, w) normalised -> (N, dim) float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return self.backbone(images.contiguous(memory_format=torch.channels_last)).float()

    def test_features(self, dataset: CanvasDataset) -> tuple[Tensor, Tensor]:
        """Features (n, dim) and labels (n,) of a whole split under the test transform, on the device."""
        collected = [
            (self(centre_crop(batch.canvas, batch.sizes, self.config.resize, self.config.image_size)), batch.labels)
            for batch in self.batches(dataset, range(len(dataset)))
        ]
        return torch.cat([f for f, _ in collected]), torch.cat([labels for _, labels in collected]).to(self.device)

    def batches(self, dataset: CanvasDataset, order: range | list[int]) -> Iterator[Batch]:
        """The images of `order`, canvases on the device, in the config's batches."""
        size = self.config.batch_size
        groups = [list(order[start : start + size]) for start in range(0, len(order), size)]
        workers = loader_workers(self.config.runtime, self.device)
        unreadable = self.unreadable.setdefault(dataset.fingerprint, Unreadable())
        for step, batch in enumerate(batches(dataset, groups, workers, unreadable, substitute=False)):
            self.tell(f"features: {step * size} of {len(order)} images")
            yield batch._replace(canvas=batch.canvas.to(self.device, non_blocking=True))


def accuracy(scores: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """{"top1": percent, "top5": percent} of (n, classes) scores; k is capped at the number of classes."""
    top = scores.topk(min(max(ks), scores.shape[1]), dim=1).indices
    hits = top == labels[:, None]
    return {f"top{k}": 100 * hits[:, :k].any(dim=1).double().mean().item() for k in ks}
