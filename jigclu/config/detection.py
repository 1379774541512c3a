"""Schema of the stage `detect`: Faster R-CNN with an FPN on COCO (paper §4.3, Table 4; protocols.md §2.6).

Defaults are the paper's run: the released configs over Detectron2's own. No torch, no detectron2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from jigclu.config.base import (
    AddedLater,
    Batch,
    ConfigError,
    Integer,
    Momentum,
    NotNegative,
    Pixels,
    Positive,
    PositiveFloat,
    Real,
    Size,
    Strict,
    Whole,
    nearest,
)
from jigclu.config.datasets import check_version, declare_version


@dataclass(frozen=True)
class DetectionSpec:
    """Everything the suite knows about a data set in COCO's format.

    `version` is part of the job id. `images`: in each complete split (if `drawn`: the default number). `how_to_get`: the
    end of every error about missing files. `drawn`: procedural scenes, no files. `sealed`: the annotations are verified
    against the SHA256SUMS beside its folders.
    """

    name: str
    version: str
    images: dict[str, int]
    how_to_get: str
    drawn: bool = False
    sealed: bool = False


_COCO = (
    "get COCO 2017 (train, val, annotations) from cocodataset.org as coco/{train2017,val2017}/*.jpg and "
    "coco/annotations/instances_{train,val}2017.json, and set JIGCLU_DATA to the folder around coco/"
)
_SPECS = (
    DetectionSpec(name="coco", version="2017", images={"train": 118_287, "val": 5_000}, how_to_get=_COCO),
    DetectionSpec(
        name="coco_mini",  # the subset that the tests and scale `mini` read, under COCO's own folder names
        version="1",
        images={"train": 343, "val": 206},
        how_to_get=f"nobody publishes this part of COCO; use --scale smoke, or coco: {_COCO}",
        sealed=True,
    ),
    DetectionSpec(
        name="coco_scenes",
        version="1",  # scenes.VERSION
        images={"train": 400, "val": 200},
        how_to_get="its images are drawn when they are needed",
        drawn=True,
    ),
)
DETECTION_DATASETS: dict[str, DetectionSpec] = {spec.name: spec for spec in _SPECS}
# Detectron2's `1x` on COCO: 90,000 iterations of 16 images = 1,440,000 images, 12.17 passes over train2017's 118,287.
COCO_IMAGES, IMAGES_1X = DETECTION_DATASETS["coco"].images["train"], 1_440_000


def detection_spec(name: str) -> DetectionSpec:
    """The data set's record. Raises ConfigError, naming the valid names and the nearest."""
    if name not in DETECTION_DATASETS:
        raise ConfigError(f"unknown detection data set {name!r}; {nearest(name, DETECTION_DATASETS)}")
    return DETECTION_DATASETS[name]


def _registered(name: str) -> str:
    return detection_spec(name).name


DetectionName = Annotated[
    str, AfterValidator(_registered), Field(json_schema_extra=lambda schema: schema.update(enum=[*DETECTION_DATASETS]))
]


class DetectionDataConfig(Strict):
    """A data set in COCO's format, by name and declared version.

    `train_images`/`val_images`: only this many, chosen by the hash of their names; of `coco_scenes` how many are drawn.
    `size`: side of such a scene in pixels.
    """

    name: DetectionName = "coco"
    version: str = ""
    train_images: Positive | None = None
    val_images: Positive | None = None
    size: Pixels = 128

    @model_validator(mode="before")
    @classmethod
    def _declare_version(cls, values: Any) -> Any:
        return declare_version(values, DETECTION_DATASETS, "coco")

    @model_validator(mode="after")
    def _known_version(self) -> DetectionDataConfig:
        check_version(self.name, self.version, detection_spec(self.name).version)
        return self


class Solver(Strict):
    """Length and learning rate (protocols.md §2.6 "solver"). `schedule` counts in `1x`, for any data set size and batch.

    iterations = schedule * 1,440,000 / 118,287 * images / batch:  1 * 12.17 * 118,287 / 8 = 180,000, as released.
    lr         = `lr` * batch / 8, the linear rule:                                0.01 for 8, d2's 0.02 for 16.
    steps      = 2/3 and 8/9 of the iterations:                        120,000 and 160,000 of 180,000.
    warm-up    = 1,000 iterations, or a tenth of all if there are fewer than 10,000.
    """

    schedule: Annotated[Real, Field(gt=0, le=1000)] = 1.0
    batch_size: Batch = 8
    lr: PositiveFloat = 0.01
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 1e-4
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.1
    warmup: Whole = 1000

    def iterations(self, images: int) -> int:
        return max(1, round(self.schedule * IMAGES_1X / COCO_IMAGES * images / self.batch_size))

    @property
    def base_lr(self) -> float:
        return self.lr * self.batch_size / 8

    def steps(self, images: int) -> tuple[int, int]:
        iterations = self.iterations(images)
        return round(iterations * 2 / 3), round(iterations * 8 / 9)

    def warmup_iterations(self, images: int) -> int:
        return min(self.warmup, self.iterations(images) // 10)


GN_GROUPS = 32  # Detectron2's
Norm = Literal["BN", "GN", "none"]
Classes = Literal["all", "object", "person"]


class DetectorConfig(Strict):
    """The network's sizes (protocols.md §2.6 "box head", "RPN test"; the rest is Detectron2's Base-RCNN-FPN).

    The last five are for a few hundred photographs; their defaults are the released config. `norm`: of the FPN and the
    box head; GN has Detectron2's 32 groups. `frozen_stages`: the stem and the first stages of the ResNet that are
    not trained (1: the stem, 3: up to layer2). `frozen_bn`: batch norm of the whole ResNet keeps the statistics of
    `precise_bn` batches of photographs, taken before the training, so that every encoder starts with fitting ones.
    `classes`: `object` gives every box one class, `person` leaves the other boxes out.
    """

    channels: Size = 256  # of the FPN, the RPN's and the box head's convolutions
    fc_dim: Size = 1024
    anchors: tuple[Pixels, Pixels, Pixels, Pixels, Pixels] = (32, 64, 128, 256, 512)  # pixels, one per level
    rois: Size = 512  # sampled per image
    proposals_train: Size = 2000  # per level, before NMS
    proposals_test: Size = 6000
    proposals: Size = 1000  # per image, after NMS
    convs: Annotated[Integer, Field(ge=0, le=16), AddedLater] = 4  # of the box head, before its linear layer
    norm: Annotated[Norm, AddedLater] = "BN"
    frozen_stages: Annotated[Integer, Field(ge=0, le=5), AddedLater] = 0
    frozen_bn: Annotated[bool, Field(strict=True), AddedLater] = False
    classes: Annotated[Classes, AddedLater] = "all"

    @model_validator(mode="after")
    def _groups_divide(self) -> DetectorConfig:
        if self.norm == "GN" and self.channels % GN_GROUPS:
            raise ValueError(f"channels: norm GN has {GN_GROUPS} groups, which do not divide {self.channels} channels")
        return self


class SizesConfig(Strict):
    """Shorter side in pixels: drawn from `train`, or `test`; `longest`: limit of the longer side (protocols.md §2.6)."""

    train: tuple[Pixels, ...] = (640, 672, 704, 736, 768, 800)
    test: Pixels = 800
    longest: Pixels = 1333
