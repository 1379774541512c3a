"""Schema of the stage `detect`: Faster R-CNN with an FPN, trained and scored on COCO (paper §4.3, Table 4; protocols.md §2.6).

Defaults are the paper's run, by the released configs over Detectron2's own. No torch, no detectron2.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jigclu.config.base import Momentum, NotNegative, Positive, PositiveFloat, Strict

DetectionName = Literal["coco", "coco_mini", "coco_scenes"]
DETECTION_VERSIONS: dict[str, str] = {"coco": "2017", "coco_mini": "1", "coco_scenes": "1"}
# Detectron2's `1x` on COCO: 90,000 iterations of 16 images = 1,440,000 images, 12.17 passes over the 118,287 of train2017.
COCO_IMAGES, IMAGES_1X = 118_287, 1_440_000


class DetectionDataConfig(Strict):
    """A data set in COCO's format, by name and declared version.

    `train_images`/`val_images`: only so many, by the hash of their names; of `coco_scenes` how many are drawn. `size`: side of
    such a scene in pixels.
    """

    name: DetectionName = "coco"
    version: str = ""
    train_images: Positive | None = None
    val_images: Positive | None = None
    size: Positive = 128

    @model_validator(mode="before")
    @classmethod
    def _declare_version(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("version"):
            values = {**values, "version": DETECTION_VERSIONS.get(str(values.get("name", "coco")), "")}
        return values

    @model_validator(mode="after")
    def _known_version(self) -> DetectionDataConfig:
        declared = DETECTION_VERSIONS[self.name]
        if self.version != declared:
            raise ValueError(
                f"data set {self.name} is declared at version {declared!r}, the config says {self.version!r}"
            )
        return self


class Solver(Strict):
    """How long, how fast (protocols.md §2.6 "solver"). `schedule` counts in `1x`, whatever the data set's size and the batch.

    iterations = schedule * 1,440,000 / 118,287 * images / batch:  1 * 12.17 * 118,287 / 8 = 180,000, the released config's.
    lr         = `lr` * batch / 8, the linear rule:                                0.01 for 8, d2's 0.02 for 16.
    steps      = 2/3 and 8/9 of the iterations:                        120,000 and 160,000 of 180,000.
    warm-up    = 1,000 iterations, a tenth of them all where those are fewer than 10,000.
    """

    schedule: PositiveFloat = 1.0
    batch_size: Positive = 8
    lr: PositiveFloat = 0.01
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 1e-4
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: Annotated[int, Field(ge=0)] = 1000

    def iterations(self, images: int) -> int:
        return max(1, round(self.schedule * IMAGES_1X / COCO_IMAGES * images / self.batch_size))

    @property
    def base_lr(self) -> float:
        return self.lr * self.batch_size / 8

    def steps(self, images: int) -> tuple[int, int]:
        whole = self.iterations(images)
        return round(whole * 2 / 3), round(whole * 8 / 9)

    def warmup_iterations(self, images: int) -> int:
        return min(self.warmup, self.iterations(images) // 10)


class DetectorConfig(Strict):
    """The network's sizes (protocols.md §2.6 "box head", "RPN test"; the rest is Detectron2's Base-RCNN-FPN)."""

    channels: Positive = 256  # of the FPN, the RPN's and the box head's convolutions
    fc_dim: Positive = 1024
    anchors: tuple[Positive, Positive, Positive, Positive, Positive] = (32, 64, 128, 256, 512)  # pixels, one a level
    rois: Positive = 512  # sampled from an image
    proposals_train: Positive = 2000  # a level, before NMS
    proposals_test: Positive = 6000
    proposals: Positive = 1000  # an image, after NMS


class SizesConfig(Strict):
    """The shorter side is drawn from `train`, or is `test`; the longer is at most `longest` (protocols.md §2.6 "sizes")."""

    train: tuple[Positive, ...] = (640, 672, 704, 736, 768, 800)
    test: Positive = 800
    longest: Positive = 1333
