"""Schemas of the pretext methods: what each of them alone can be told. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from jigclu.config.base import Momentum, NotNegative, Positive, PositiveFloat, Strict


class JigCluConfig(Strict):
    """The pretext task (paper §3). `loss_scale: official` multiplies Eq. 2 by temperature / 0.07 (protocols.md §1.5, D2).

    `input`: what the network is fed (paper §5.1, Figure 5): montages, the patches as they are, or the patches scaled up to
    the size of an image. `augment`: where the augmentation stands (paper §5.2, Table 7): on every patch `after` the split; the
    crop alone on the whole image and the rest on every patch (`during`); all of it on the whole image (`before`).
    """

    name: Literal["jigclu"] = "jigclu"
    m: Annotated[int, Field(ge=2, le=8)] = 2
    extend: Annotated[float, Field(ge=0, le=0.5)] = 0.3
    temperature: PositiveFloat = 0.3
    loss_scale: Literal["official", "paper"] = "official"
    clustering_weight: NotNegative = 1.0
    location_weight: NotNegative = 1.0
    dim: Positive = 128
    input: Literal["montage", "small", "scaled"] = "montage"
    augment: Literal["after", "during", "before"] = "after"


class SimCLRConfig(Strict):
    """SimCLR (Chen et al. 2020): two views of every image, NT-Xent over the 2N of the global batch, a two-layer head."""

    name: Literal["simclr"] = "simclr"
    temperature: PositiveFloat = 0.1
    dim: Positive = 128


class MoCoConfig(Strict):
    """MoCo (He et al. 2020): a key encoder that trails the query's, and a queue of keys as negatives.

    Version 1 has a linear head, version 2 (Chen et al. 2020) an MLP. `momentum` is the key encoder's. `shuffle_groups`: the keys'
    batch statistics are those of so many random parts of the batch (MoCo's eight GPUs), so that they tell nothing about the query.
    """

    name: Literal["moco"] = "moco"
    version: Literal[1, 2] = 2
    temperature: PositiveFloat = 0.2
    queue: Positive = 65536
    momentum: Momentum = 0.999
    shuffle_groups: Positive = 8
    dim: Positive = 128


class SupervisedConfig(Strict):
    """Cross-entropy with the labels: the `Supervised` rows."""

    name: Literal["supervised"] = "supervised"


def _named(values: Any) -> Any:
    return {"name": "jigclu", **values} if isinstance(values, dict) else values


MethodConfig = Annotated[
    Annotated[JigCluConfig | SimCLRConfig | MoCoConfig | SupervisedConfig, Field(discriminator="name")],
    BeforeValidator(_named),
]
METHODS: dict[str, type[Strict]] = {
    "jigclu": JigCluConfig,
    "simclr": SimCLRConfig,
    "moco": MoCoConfig,
    "supervised": SupervisedConfig,
}
