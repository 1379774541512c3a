"""The data sets that a config can name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from jigclu.config.base import (
    Positive,
    Strict,
)

DatasetName = Literal["scenes", "imagenette", "imagenet100", "imagenet1k", "cifar10", "cifar100"]


Subset = Literal["1percent", "10percent"]


# Declared versions stand in the job id; raise one when the bytes behind the name change on purpose.
DATASET_VERSIONS: dict[str, str] = {
    "scenes": "1",
    "imagenette": "v2-128px",
    "imagenet100": "cmc-1",
    "imagenet1k": "2012",
    "cifar10": "python",
    "cifar100": "python",
}


PACKABLE: tuple[DatasetName, ...] = ("imagenette", "imagenet100", "imagenet1k")  # folders of images


class DataConfig(Strict):
    """A data set by name and declared version.

    `canvas`: side in pixels of the square uint8 canvas that an image is decoded to. A longer image is scaled down to fit,
    its aspect kept; the released code crops from the original (protocols.md §1.1), and ImageNet's usual 500 pixels stay
    as they are. `quality`: None: the images as they are; else re-encoded as JPEG at this quality once they are scaled to the
    canvas, read from a pack (`python -m jigclu.data pack`). `subset`: of the train split only SimCLR's 1 % or 10 % label list
    (drawn class-balanced by rule where a data set has no list; protocols.md §2.3, §2.4). `train_images`/`val_images`: use only so
    many, class-balanced; for `scenes` how many are drawn.
    """

    name: DatasetName = "imagenet100"
    version: str = ""
    canvas: Positive = 512
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    subset: Subset | None = None
    train_images: Positive | None = None
    val_images: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _declare_version(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("version"):
            values = {**values, "version": DATASET_VERSIONS.get(str(values.get("name", "imagenet100")), "")}
        return values

    @model_validator(mode="after")
    def _known_version(self) -> DataConfig:
        declared = DATASET_VERSIONS[self.name]
        if self.version != declared:
            raise ValueError(
                f"data set {self.name} is declared at version {declared!r}, the config says {self.version!r}"
            )
        return self

    @model_validator(mode="after")
    def _packable(self) -> DataConfig:
        if self.quality is not None and self.name not in PACKABLE:
            raise ValueError(
                f"quality re-encodes data sets that are folders of images ({', '.join(PACKABLE)}); {self.name} is none"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_no_quality(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)  # jobs from before there were packs keep their ids
        if self.quality is None:
            values.pop("quality", None)
        return values
