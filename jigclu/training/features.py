"""What every evaluation does: its transforms, accuracy, and features of a frozen backbone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jigclu import augment, random
from jigclu.config import ClassifierConfig, ConfigError, EvaluationConfig, RuntimeConfig
from jigclu.data.datasets import CanvasDataset
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.network import Backbone
from jigclu.resample import Taps, resample, triangle

log = logging.getLogger("jigclu")


def loader_workers(runtime: RuntimeConfig, device: torch.device) -> int:
    """Decoding processes: as configured, else as many as a GPU job has CPU threads, else none: beside a CPU job they would take
    the cores that its own threads wait for each other on (benchmarks/README.md)."""
    if runtime.workers is not None:
        return runtime.workers
    return torch.get_num_threads() if device.type == "cuda" else 0


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
        axes.append(triangle(start, size * step, side, size, limit=extent))
    rows, columns = (Taps(*(part.to(canvas.device) for part in taps)) for taps in axes)
    return augment.normalise(
        resample(canvas, rows, columns, white=1) / 255
    )  # an image of that size stays as it is, to the bit


def random_crop(
    config: ClassifierConfig, canvas: Tensor, sizes: Tensor, indices: Tensor, seed: int, epoch: int
) -> Tensor:
    """The train transform of a classifier, normalised: (N, 3, image_size, image_size) float32 on the canvas's device.

    canvas (N, 3, S, S) uint8, sizes (N, 2) height and width, indices (N,); the draws are counted by (seed, epoch, index).
    `crop: resized`: resized crop and flip of the whole image (protocols.md §2.1 "train aug"); `padded`: §2.5's. Raises ConfigError
    where an image is too small for a padded crop.
    """
    if config.crop == "padded":
        return augment.normalise(_padded(config, canvas, sizes, indices, seed, epoch).float() / 255)
    boxes = torch.stack((torch.zeros_like(sizes[:, 0]), torch.zeros_like(sizes[:, 0]), sizes[:, 1], sizes[:, 0]), 1)[
        :, None
    ]
    parameters = augment.draw(config, seed, epoch, indices, boxes, purpose=random.PROBE)
    return augment.apply(canvas, parameters, config.image_size)


def _padded(config: ClassifierConfig, canvas: Tensor, sizes: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
    room = sizes + 2 * config.padding - config.image_size
    if (room < 0).any():
        height, width = sizes[room.amin(dim=1).argmin()].tolist()
        raise ConfigError(
            f"crop: padded takes {config.image_size} pixels of an image of {width} x {height} with {config.padding} round it: "
            "it is too small"
        )
    drawn = random.uniforms(seed, random.PROBE, epoch, indices, 1, 3)[:, 0]
    flip = drawn[:, 2] < config.flip_probability
    return padded_crop(canvas, sizes, (drawn[:, :2] * (room + 1)).long(), flip, config.image_size, config.padding)


def padded_crop(canvas: Tensor, sizes: Tensor, offsets: Tensor, flip: Tensor, size: int, padding: int) -> Tensor:
    """`size` x `size` pixels of each image with `padding` black ones round it, as torchvision pads and crops: no resampling.

    canvas (N, 3, S, S) uint8; on the CPU sizes (N, 2) height and width, offsets (N, 2) upper and left in the padded image, flip
    (N,) bool. Returns (N, 3, size, size) uint8.
    """
    side = canvas.shape[-1]
    place = torch.arange(size)
    rows = offsets[:, :1] + place - padding
    columns = offsets[:, 1:] + torch.where(flip[:, None], size - 1 - place, place) - padding
    seen = [(axis >= 0) & (axis < extent[:, None]) for axis, extent in ((rows, sizes[:, 0]), (columns, sizes[:, 1]))]
    inside = (seen[0][:, None, :, None] & seen[1][:, None, None, :]).to(canvas.device, non_blocking=True)
    rows, columns = (axis.clamp(0, side - 1).to(canvas.device, non_blocking=True) for axis in (rows, columns))
    picked = canvas.gather(2, rows[:, None, :, None].expand(-1, 3, -1, side))
    return picked.gather(3, columns[:, None, None, :].expand(-1, 3, size, -1)) * inside


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
        stream = batches(dataset, groups, workers, unreadable, substitute=False, device=self.device)
        for step, batch in enumerate(stream):
            self.tell(f"features: {step * size} of {len(order)} images")
            if not len(batch.labels):  # not one of them could be read
                continue
            yield batch._replace(canvas=batch.canvas.to(self.device, non_blocking=True))


def hits(scores: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> Tensor:
    """How many of the (n, classes) scores have their label among the k best, (len(ks),) float64; k is capped at the classes."""
    top = scores.topk(min(max(ks), scores.shape[1]), dim=1).indices
    found = top == labels[:, None]
    return torch.stack([found[:, :k].any(dim=1).double().sum() for k in ks])


def accuracy(scores: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """{"top1": percent, "top5": percent} of (n, classes) scores; k is capped at the number of classes."""
    return {
        f"top{k}": 100 * (found / len(labels)) for k, found in zip(ks, hits(scores, labels, ks).tolist(), strict=True)
    }
