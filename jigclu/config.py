"""Strict schemas of every stage's config. Defaults are the paper's run (scale `paper`, protocol `official`).

An unknown key or a wrong type is an error. Everything under `runtime` is transient: it changes how a job runs,
never its result, so it is not part of the job id. No torch in here.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

DatasetName = Literal["scenes", "imagenette", "imagenet100", "imagenet1k"]
Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1]:
        raise ValueError(f"two positive numbers, the smaller first, are expected, not {values}")
    return values


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]

# Declared versions stand in the job id; raise one when the bytes behind the name change on purpose.
DATASET_VERSIONS: dict[str, str] = {
    "scenes": "1",
    "imagenette": "v2-128px",
    "imagenet100": "cmc-1",
    "imagenet1k": "2012",
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Strict):
    """A data set by name and declared version.

    `canvas`: side in pixels of the square uint8 canvas that an image is decoded to. A longer image is scaled down to fit,
    its aspect kept; the released code crops from the original (protocols.md §1.1), and ImageNet's usual 500 pixels stay
    as they are. `train_images`/`val_images`: use only so many, class-balanced; for `scenes` how many are drawn.
    """

    name: DatasetName = "imagenet100"
    version: str = ""
    canvas: Positive = 512
    train_images: Positive | None = None
    val_images: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _declare_version(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("version"):
            values = {**values, "version": DATASET_VERSIONS.get(values.get("name", "imagenet100"), "")}
        return values

    @model_validator(mode="after")
    def _known_version(self) -> DataConfig:
        declared = DATASET_VERSIONS[self.name]
        if self.version != declared:
            raise ValueError(
                f"data set {self.name} is declared at version {declared!r}, the config says {self.version!r}"
            )
        return self


class AugmentConfig(Strict):
    """MoCo v2's list, drawn for every patch on its own (paper §5.2; protocols.md §1.2)."""

    crop_scale: Range = (0.2, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    jitter_probability: Probability = 0.8
    gray_probability: Probability = 0.2
    blur_sigma: Range = (0.1, 2.0)
    blur_probability: Probability = 0.5
    flip_probability: Probability = 0.5


class JigCluConfig(Strict):
    """The pretext task (paper §3). `loss_scale: official` multiplies Eq. 2 by temperature / 0.07 (protocols.md §1.5, D2)."""

    name: Literal["jigclu"] = "jigclu"
    m: Annotated[int, Field(ge=2, le=8)] = 2
    extend: Annotated[float, Field(ge=0, le=0.5)] = 0.3
    temperature: Annotated[float, Field(gt=0)] = 0.3
    loss_scale: Literal["official", "paper"] = "official"
    clustering_weight: Annotated[float, Field(ge=0)] = 1.0
    location_weight: Annotated[float, Field(ge=0)] = 1.0
    dim: Positive = 128


class OptimizerConfig(Strict):
    """SGD; cosine per epoch, no warm-up (paper §4; protocols.md §1.7)."""

    lr: Annotated[float, Field(gt=0)] = 0.03
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4


class RuntimeConfig(Strict):
    """Transient: how a job runs. Never changes a result, never part of the job id."""

    workers: Annotated[int, Field(ge=0)] | None = None
    threads: Positive | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    log_every: Positive = 10
    monitor_every: Annotated[int, Field(ge=0)] = 0


class PretrainConfig(Strict):
    """Unsupervised pretraining (paper §4 "Unsupervised Training"; protocols.md §1.7)."""

    data: DataConfig = DataConfig()
    backbone: Backbone = "resnet50"
    method: JigCluConfig = JigCluConfig()
    augment: AugmentConfig = AugmentConfig()
    image_size: Positive = 224
    batch_size: Annotated[int, Field(ge=2)] = 256
    epochs: Positive = 200
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["float32", "bfloat16"] = "float32"
    runtime: RuntimeConfig = RuntimeConfig()


class EvaluationConfig(Strict):
    """What every evaluation of a frozen encoder shares: data, backbone and the test transform (protocols.md §2.1)."""

    data: DataConfig = DataConfig()
    backbone: Backbone = "resnet50"
    image_size: Positive = 224
    resize: Positive = 256
    batch_size: Positive = 256
    precision: Literal["float32", "bfloat16"] = "float32"
    runtime: RuntimeConfig = RuntimeConfig()


class LinearConfig(EvaluationConfig):
    """Linear probe (protocols.md §2.1, §2.2). `lr` is the reported one; `other_lrs` ride on the same forward pass.

    `views`: None draws fresh crops every epoch, as the protocol does; a number caches the features of so many augmented
    epochs and goes round them, which is what makes a probe affordable on a CPU.
    """

    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    flip_probability: Probability = 0.5
    epochs: Positive = 100
    milestones: tuple[Positive, ...] = (60, 80)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    lr: Annotated[float, Field(gt=0)] = 1.0
    other_lrs: tuple[Annotated[float, Field(gt=0)], ...] = (0.1, 10.0, 30.0)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    views: Positive | None = None


class KnnConfig(EvaluationConfig):
    """Weighted k-nearest-neighbour vote on frozen features (Wu et al. 2018): the cheap monitor."""

    k: Positive = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07


STAGES: dict[str, type[Strict]] = {"pretrain": PretrainConfig, "linear": LinearConfig, "knn": KnnConfig}


class ConfigError(ValueError):
    """A user's mistake in a config: one line, naming the valid choices and the nearest."""


def nearest(word: str, choices: list[str]) -> str:
    """`valid: a, b, c; did you mean b?`: the tail of every error about a name."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"valid: {', '.join(sorted(choices))}" + (f"; did you mean {close[0]}?" if close else "")


def parse(stage: str, values: dict[str, Any]) -> Any:
    """The stage's schema from plain values. Raises ConfigError (one line) on an unknown stage, key or type."""
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; {nearest(stage, list(STAGES))}")
    try:
        return STAGES[stage].model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(stage, error)) from None


def _one_line(stage: str, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in (stage, *first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key {where}; {nearest(str(first['loc'][-1]), _fields(stage, first['loc'][:-1]))}"
    shown = f" (got {first['input']!r})" if not isinstance(first["input"], dict) else ""
    return f"{where}: {first['msg']}{shown}"


def _fields(stage: str, path: tuple[int | str, ...]) -> list[str]:
    model: Any = STAGES[stage]
    for part in path:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)


def identity(config: Strict) -> dict[str, Any]:
    """The config as plain JSON values less its transient part: what goes into the job id."""
    values = config.model_dump(mode="json")
    values.pop("runtime", None)
    return values
