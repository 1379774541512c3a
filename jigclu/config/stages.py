"""Strict schemas of every stage's config. Defaults are the paper's run (scale `paper`, protocol `official`).

An unknown key or a wrong type is an error. Everything under `runtime` is transient: it changes how a job runs but never
its result, so it is not part of the job id. No torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from jigclu.config.base import (
    AddedLater,
    Batch,
    ConfigError,
    Epochs,
    Integer,
    Momentum,
    NotNegative,
    Pixels,
    Positive,
    PositiveFloat,
    Probability,
    Range,
    Real,
    Share,
    Size,
    Strict,
    Whole,
    error_line,
    nearest,
    plain,
)
from jigclu.config.datasets import DataConfig
from jigclu.config.detection import DetectionDataConfig, DetectorConfig, SizesConfig, Solver
from jigclu.config.methods import JigCluConfig, MethodConfig

KNN_IMAGES = (
    130_000  # at most, of train, vote on an encoder beside its probe: ImageNet-100 whole, 130 of each of 1,000 classes
)
Backbone = Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Layer = Literal["layer1", "layer2", "layer3", "layer4"]  # of a ResNet
Precision = Literal["float32", "bfloat16"]
Jitter = Annotated[Real, Field(ge=0, le=10)]  # a factor is drawn from 1 - jitter (at least 0) to 1 + jitter


class AugmentConfig(Strict):
    """MoCo v2's augmentations, drawn for every patch separately (paper §5.2; protocols.md §1.2)."""

    crop_scale: Range = (0.2, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    brightness: Jitter = 0.4
    contrast: Jitter = 0.4
    saturation: Jitter = 0.4
    hue: Annotated[Real, Field(ge=0, le=0.5)] = 0.1
    jitter_probability: Probability = 0.8
    gray_probability: Probability = 0.2
    blur_sigma: Range = (0.1, 2.0)
    blur_probability: Probability = 0.5
    flip_probability: Probability = 0.5


class OptimizerConfig(Strict):
    """SGD without warm-up (paper §4; protocols.md §1.7)."""

    lr: PositiveFloat = 0.03
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 1e-4


class RuntimeConfig(Strict):
    """Transient: how a job runs. Never changes a result, never part of the job id."""

    workers: Annotated[Integer, Field(ge=0, le=1024)] | None = None
    threads: Annotated[Integer, Field(gt=0, le=4096)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_minutes: Annotated[Real, Field(gt=0, le=525_600)] = 10.0
    log_every: Positive = 10
    monitor_every: Whole = 0


def _in_epochs(shares: tuple[float, ...], epochs: int) -> tuple[int, ...]:
    return tuple(max(1, round(share * epochs)) for share in shares)


class PretrainConfig(Strict):
    """Pretraining with any of the methods (paper §4 "Unsupervised Training"; protocols.md §1.7).

    `schedule`, constant within an epoch: `cosine`, or `steps`, which multiplies the rate by 0.1 at each of the `milestones`.
    These are shares of the epochs, so that they hold at every scale; the defaults are MoCo v1's 120 and 160 of 200.
    """

    data: DataConfig = DataConfig()
    backbone: Backbone = "resnet50"
    method: MethodConfig = JigCluConfig()
    augment: AugmentConfig = AugmentConfig()
    image_size: Pixels = 224
    batch_size: Annotated[Integer, Field(ge=2, le=100_000)] = 256
    epochs: Epochs = 200
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[Literal["cosine", "steps"], AddedLater] = "cosine"
    milestones: Annotated[tuple[Share, ...], AddedLater] = (0.6, 0.8)
    precision: Precision = "float32"
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def milestone_epochs(self) -> tuple[int, ...]:
        return _in_epochs(self.milestones, self.epochs)


# The batch norms take their statistics from the train images before the backbone is frozen. Random weights otherwise keep
# the initial mean 0 and variance 1, with which no trained network works.
CalibrateBn = Annotated[Annotated[bool, Field(strict=True)], AddedLater]


class EvaluationConfig(Strict):
    """Shared by all evaluations of an encoder: data, backbone and the test transform (protocols.md §2.1)."""

    data: DataConfig = DataConfig()
    backbone: Backbone = "resnet50"
    image_size: Pixels = 224
    resize: Pixels = 256
    batch_size: Batch = 256
    precision: Precision = "float32"
    runtime: RuntimeConfig = RuntimeConfig()


class ClassifierConfig(EvaluationConfig):
    """Shared by the stages that train a classifier on labels: the train transform (protocols.md §2.1, §2.5).

    `crop: resized` is RandomResizedCrop, `padded` a RandomCrop of the image with `padding` black pixels around it (CIFAR).
    `milestones`: when the rate is multiplied by gamma, as shares of the epochs, so that they hold at every scale.
    """

    crop: Literal["resized", "padded"] = "resized"
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    padding: Annotated[Integer, Field(ge=0, le=10_000)] = 4
    flip_probability: Probability = 0.5
    gamma: Annotated[Real, Field(gt=0, le=1)] = 0.1
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 0.0
    epochs: Epochs = 100
    milestones: tuple[Share, ...] = ()

    @property
    def milestone_epochs(self) -> tuple[int, ...]:
        return _in_epochs(self.milestones, self.epochs)


class LinearConfig(ClassifierConfig):
    """Linear probe (protocols.md §2.1, §2.2). `lr` is the reported rate; `other_lrs` share its forward pass.

    `views`: None draws new crops every epoch, as the protocol does; a number caches the features of that many augmented
    epochs and cycles through them, which makes a probe affordable on a CPU. `standardize`: each dimension of the features
    has the mean 0 and standard deviation 1 over the train split.

    `selection`: which rate is reported. `given`: `lr`, at its best epoch on val, as released. `held_out`: the rate and
    weight decay that are best on a held-out tenth of train, after training on the rest; the classifier trained on all of
    train with them is reported at its last epoch, so val chooses nothing.
    """

    milestones: tuple[Share, ...] = (0.6, 0.8)
    lr: PositiveFloat = 1.0
    other_lrs: tuple[PositiveFloat, ...] = (0.1, 10.0, 30.0)
    views: Epochs | None = None
    calibrate_bn: CalibrateBn = False
    standardize: Annotated[Annotated[bool, Field(strict=True)], AddedLater] = False
    selection: Annotated[Literal["given", "held_out"], AddedLater] = "given"
    other_weight_decays: Annotated[tuple[NotNegative, ...], AddedLater] = ()

    @model_validator(mode="after")
    def _decays_need_a_selection(self) -> Self:
        if self.other_weight_decays and self.selection != "held_out":
            raise ValueError("other_weight_decays: only with selection: held_out; leave one of the two out")
        return self


class FinetuneConfig(ClassifierConfig):
    """Backbone and a new classifier trained together (protocols.md §2.4, §2.5).

    `lr` is the backbone's rate, `head_lr` the classifier's; None: the same, which the released code always uses whatever
    its arguments say (protocols.md §0.6). `schedule`: `steps` multiplies by gamma at the milestones, `cosine` is per epoch.
    An incomplete batch is dropped. Every `validate_every`-th epoch and the last are validated, and the best is reported.
    """

    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[Share, ...] = (0.3, 0.6, 0.9)
    lr: PositiveFloat = 0.01
    head_lr: PositiveFloat | None = None
    validate_every: Epochs = 2


class KnnConfig(EvaluationConfig):
    """Weighted k-nearest-neighbour vote on frozen features (Wu et al. 2018): an inexpensive monitor."""

    k: Size = 20
    temperature: PositiveFloat = 0.07
    calibrate_bn: CalibrateBn = False


class DetectConfig(Strict):
    """Faster R-CNN R50-FPN from a pretrained backbone (paper §4.3; protocols.md §2.6). `precise_bn`: batches, 0: none.

    `precision`: bfloat16 trains ResNet and FPN under autocast; boxes, heads, losses and the test are in float32.
    """

    data: DetectionDataConfig = DetectionDataConfig()
    backbone: Backbone = "resnet50"
    solver: Solver = Solver()
    detector: DetectorConfig = DetectorConfig()
    sizes: SizesConfig = SizesConfig()
    precise_bn: Annotated[Integer, Field(ge=0, le=1_000_000)] = 200
    precision: Precision = "float32"
    runtime: RuntimeConfig = RuntimeConfig()


class DenseConfig(Strict):
    """Which cells of the frozen maps lie in an object? One 1x1 convolution on `layers`, whose coarser maps are enlarged.

    Not in the paper: it tests its reason for Table 4, features of instances (§4.3), without a detector. Photographs are
    scaled down so that their longer side is `image_size`. `penalties`: of the ridge regression, in units of a
    standardised feature's variance; chosen on a tenth of the train photographs that the fit does not see.
    """

    data: DetectionDataConfig = DetectionDataConfig()
    backbone: Backbone = "resnet50"
    layers: tuple[Layer, ...] = ("layer3", "layer4")
    image_size: Pixels = 256
    batch_size: Batch = 32
    penalties: tuple[PositiveFloat, ...] = (0.01, 0.1, 1.0, 10.0)
    precision: Precision = "float32"
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _something_to_fit(self) -> DenseConfig:
        for name in ("layers", "penalties"):
            if not getattr(self, name):
                raise ValueError(f"{name}: at least one is needed")
        return self


StageName = Literal["pretrain", "linear", "finetune", "knn", "detect", "dense"]
STAGES: dict[str, type[Strict]] = {  # in the order of StageName
    "pretrain": PretrainConfig,
    "linear": LinearConfig,
    "finetune": FinetuneConfig,
    "knn": KnnConfig,
    "detect": DetectConfig,
    "dense": DenseConfig,
}


# What a stage's result has, and so what a cell can report; a new metric is added here. Pretraining: any, because methods
# have metrics of their own.
METRICS: dict[str, tuple[str, ...]] = {
    "pretrain": (),
    "linear": ("top1", "top5", "best_top1", "last_top1", "knn_top1", "alignment", "uniformity", "rankme"),
    "finetune": ("top1", "top5", "last_top1", "best_epoch"),
    "knn": ("top1", "top5"),
    "detect": (
        "ap",
        "ap50",
        "ap75",
        "ap_small",
        "ap_medium",
        "ap_large",
        "agnostic_ap",
        "agnostic_ap50",
        "person_ap",
        "person_ap50",
        "proposal_ar100",
    ),
    "dense": ("object_ap", "object_chance", "person_ap", "person_chance"),
}


def parse(stage: str, values: dict[str, Any]) -> Any:
    """The stage's schema from plain values. Raises ConfigError (one line) on an unknown stage, key or type."""
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; {nearest(stage, STAGES)}")
    try:
        return STAGES[stage].model_validate(values)
    except ValidationError as error:
        raise ConfigError(error_line(error, STAGES[stage], stage)) from None


def identity(config: Strict) -> dict[str, Any]:
    """The config as plain JSON values without its transient part: the input of the job id."""
    values = plain(config)
    values.pop("runtime", None)
    return values
