"""Schemas of the pretext methods: the settings of each, and what planning needs to know about it. No torch.

To add a method: a class here, named in `_AnyMethod`; a line in `jigclu/methods/__init__.py`; the implementation in
`jigclu/methods/<name>.py`; its recipe in `experiments/methods/<name>.yaml`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from jigclu.config.base import (
    AddedLater,
    ConfigError,
    Integer,
    Momentum,
    NotNegative,
    PositiveFloat,
    Real,
    Size,
    Strict,
    not_boolean,
)

SMALLEST_PATCH = 8  # pixels
OFFICIAL_BASE = 0.07  # the released loss multiplies Eq. 2 by temperature / 0.07 (protocols.md §1.5, D2)


class MethodSchema(Strict):
    """What planning needs from every method's config; the defaults suit a method with one view per image."""

    @property
    def passes(self) -> float:
        """The method's cost: forward-backward passes of the backbone per image, at the config's `image_size`."""
        return 1.0

    @property
    def short_label(self) -> str:
        """The method's part of a job's name, such as `m=2`; empty: the name of its file in experiments/methods."""
        return ""

    def chance_loss(self, batch_size: int) -> float | None:
        """The loss of a network that cannot tell its inputs apart; None if the method states none."""
        return None

    def smallest_image(self, crop_side: float) -> int:
        """The least pixels of an image's side that the method can use; `crop_side`: the least share of it that is cropped."""
        return 1

    def check(self, batch_size: int, image_size: int) -> None:
        """Check the method against the global batch and the input's side in pixels.

        Raises:
            ConfigError: they do not fit; one line with the numbers.
        """


class JigCluConfig(MethodSchema):
    """The pretext task (paper §3). `loss_scale: official` multiplies Eq. 2 by temperature / 0.07 (protocols.md §1.5, D2).

    `extend`: how far a patch reaches past its cell, as a share of the image's side. `extend_of: cell` multiplies it by 2 / m, so
    that it is the same share of the cell for every m as for m = 2 (register, D4).

    `input`: the network's input (paper §5.1, Figure 5): montages, patches at their own size (`small`), or patches scaled up to
    the size of an image. `augment`: when images are augmented (paper §5.2, Table 7): every patch `after` the split; the image is
    cropped before the split and every patch gets the other augmentations (`during`); the image gets all of them (`before`).
    """

    name: Literal["jigclu"] = "jigclu"
    m: Annotated[Integer, Field(ge=2, le=8)] = 2
    extend: Annotated[Real, Field(ge=0, le=0.5)] = 0.3
    extend_of: Annotated[Literal["image", "cell"], AddedLater] = "image"
    temperature: PositiveFloat = 0.3
    loss_scale: Literal["official", "paper"] = "official"
    clustering_weight: NotNegative = 1.0
    location_weight: NotNegative = 1.0
    dim: Size = 128
    input: Literal["montage", "small", "scaled"] = "montage"
    augment: Literal["after", "during", "before"] = "after"

    @property
    def reach(self) -> float:
        """How far a patch reaches past its cell, as a share of the image's side."""
        return self.extend if self.extend_of == "image" else self.extend * 2 / self.m

    @property
    def passes(self) -> float:
        """A montage or m*m small patches have the pixels of one image; m*m scaled-up patches those of m*m images."""
        return float(self.m**2) if self.input == "scaled" else 1.0

    @property
    def short_label(self) -> str:
        return f"m={self.m}"

    def chance_loss(self, batch_size: int) -> float:
        """Eq. 4 with equal similarities and equal logits."""
        patches, scale = self.m**2, self.temperature / OFFICIAL_BASE if self.loss_scale == "official" else 1.0
        return scale * self.clustering_weight * math.log(batch_size * patches - 1) + self.location_weight * math.log(
            patches
        )

    def smallest_image(self, crop_side: float) -> int:
        """m x m pixels can be split; `during` splits a crop."""
        return {"after": self.m, "during": math.ceil((self.m + 1) / max(crop_side, 0.1)), "before": self.m}[
            self.augment
        ]

    def check(self, batch_size: int, image_size: int) -> None:
        if (patch := image_size // self.m) < SMALLEST_PATCH:
            raise ConfigError(
                f"image_size {image_size} gives patches of {patch} pixels; at least {SMALLEST_PATCH} are needed"
            )


class SimCLRConfig(MethodSchema):
    """SimCLR (Chen et al. 2020): two views of every image, NT-Xent over the 2N views of the global batch, a two-layer head.

    `head`: `bn` has batch norm after both layers, as SimCLR's released code; `mlp` has none, as JigClu's and MoCo v2's.
    """

    name: Literal["simclr"] = "simclr"
    temperature: PositiveFloat = 0.1
    dim: Size = 128
    head: Annotated[Literal["mlp", "bn"], AddedLater] = "mlp"

    @property
    def passes(self) -> float:
        """Two views per image."""
        return 2.0

    def chance_loss(self, batch_size: int) -> float:
        return math.log(2 * batch_size - 1)


class MoCoConfig(MethodSchema):
    """MoCo (He et al. 2020): a key encoder that follows the query encoder, and a queue of keys as negatives.

    Version 1 has a linear head, version 2 (Chen et al. 2020) an MLP. `momentum` is the key encoder's. `shuffle_groups`: the keys
    are batch-normalised in this many random parts (MoCo's eight GPUs), so that batch statistics do not reveal the query.
    """

    name: Literal["moco"] = "moco"
    version: Annotated[Literal[1, 2], BeforeValidator(not_boolean)] = 2
    temperature: PositiveFloat = 0.2
    queue: Annotated[Integer, Field(gt=0, le=10_000_000)] = 65536
    momentum: Momentum = 0.999
    shuffle_groups: Size = 8
    dim: Size = 128

    @property
    def passes(self) -> float:
        """The query's view, and the key's view without a backward pass (a third of a training step)."""
        return 4 / 3

    def chance_loss(self, batch_size: int) -> float:
        """The key and the whole queue are equally likely."""
        return math.log(1 + self.queue)

    def check(self, batch_size: int, image_size: int) -> None:
        if self.queue < batch_size:
            raise ConfigError(
                f"queue {self.queue} is smaller than batch_size {batch_size}: it must hold one batch's keys"
            )


class SupervisedConfig(MethodSchema):
    """Cross-entropy with the labels: the `Supervised` rows."""

    name: Literal["supervised"] = "supervised"


def _with_default_name(values: Any) -> Any:
    """The default method is the paper's own."""
    return {"name": "jigclu", **values} if isinstance(values, dict) else values


_AnyMethod = JigCluConfig | SimCLRConfig | MoCoConfig | SupervisedConfig
MethodConfig = Annotated[Annotated[_AnyMethod, Field(discriminator="name")], BeforeValidator(_with_default_name)]
METHODS: dict[str, type[MethodSchema]] = {
    schema.model_fields["name"].default: schema for schema in get_args(_AnyMethod)
}
