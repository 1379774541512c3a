"""The data sets that a config can name: one record each. Pure data: no numpy, no torch, no network.

To add a data set, add one record here. Planning (names, versions, numbers of images), reading, `check`, `get`, `pack`
and every hint are derived from it; only a new layout or a new download needs code (data/catalog.py, data/download.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from jigclu.config.base import AddedLater, ConfigError, Integer, Pixels, Positive, Strict, nearest

Subset = Literal["1percent", "10percent"]
Layout = Literal["folders", "cifar", "drawn"]
NOT_PACKED: dict[Layout, str] = {
    "cifar": "it is one array in memory already",
    "drawn": "its images are drawn when they are read",
}


@dataclass(frozen=True)
class ListFile:
    """A list of classes or images, `path` below the data root, accepted only with this digest."""

    path: str
    sha256: str
    lines: int


@dataclass(frozen=True)
class CifarFiles:
    """File names with their official md5s, as torchvision's class `reader` states them; the val split is `test`."""

    reader: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]


@dataclass(frozen=True)
class DatasetSpec:
    """Everything the suite knows about a data set.

    `version` is part of the job id: raise it when the bytes behind the name change on purpose. `layout`: how the files are
    laid out, which decides what reads them. `images`: in each complete split (drawn ones: how many by default).
    `how_to_get`: the end of every error about missing files. `folder`: below the data root. `fetcher`: the download in
    data/download.py, "" if there is none. `subsets`: label lists; a subset without a list is drawn by rule, an even share
    of every class (protocols.md §2.3, §2.4). `class_list`: the class folders to use, all if None. `per_class`: the least
    number of train images and the number of val images of every class, checked instead of the totals. `square`: the side in
    pixels of every image, 0 if they vary. `twin`: the data set with the same files in another size, likely to be mistaken for it.
    `class_is`: what images
    of a class have in common, for captions, if it is not evident.
    """

    name: str
    version: str
    layout: Layout
    images: dict[str, int]
    classes: int
    how_to_get: str
    folder: str = ""
    fetcher: str = ""
    subsets: dict[str, ListFile] = field(default_factory=dict)
    class_list: ListFile | None = None
    per_class: tuple[int, int] | None = None
    square: int = 0
    twin: str = ""
    cifar: CifarFiles | None = None
    class_is: str = ""

    @property
    def packable(self) -> bool:
        return self.layout not in NOT_PACKED


_IMAGENET = "put ILSVRC2012 (image-net.org) at <data root>/imagenet1k/{train,val}/<wnid>/*.JPEG (val sorted by wnid)"
_ROOT = "and set JIGCLU_DATA to the data root"
_LISTS = "for subsets also lists/{1percent,10percent}.txt (github.com/google-research/simclr, imagenet_subsets)"
_CIFAR = "download it with `jigclu data get {0}`, or set JIGCLU_DATA to the folder that contains {1}"
_ILSVRC2012 = (732, 50)  # train classes hold 732 to 1300 images, val classes 50

_IMAGENETTE = {"train": 9_469, "val": 3_925}


def _imagenette_subsets(folder: str) -> dict[str, ListFile]:
    """The lines of SimCLR's lists whose file is one of Imagenette's train images, in their order."""
    digests = {
        "1percent": ("9a2dd83c425d6f6486a4c5001df1f07c21fa015803687b029025695912caf4ae", 93),
        "10percent": ("0ed45ca2af1661b367d674e7086c5e1d1f264ced5fc42e9946e49a02c221702b", 909),
    }
    return {subset: ListFile(f"{folder}/splits/simclr_{subset}.txt", *found) for subset, found in digests.items()}


_SPECS = (
    DatasetSpec(
        name="scenes",
        version="1",  # scenes.VERSION: raise both when a scene changes
        layout="drawn",
        images={"train": 2000, "val": 500},
        classes=10,
        how_to_get="its images are drawn when they are read",
        class_is="the shape and pattern of the largest object",
    ),
    DatasetSpec(
        name="textures",
        version="1",  # textures.VERSION: raise both when a texture changes
        layout="drawn",
        images={"train": 2000, "val": 2000},
        classes=10,
        how_to_get="its images are drawn when they are read",
        class_is="the pattern, in any colour, size and direction",
    ),
    DatasetSpec(
        name="imagenette",
        version="v2-128px",  # every image squashed to 128 x 128, JPEG quality 80
        layout="folders",
        images=_IMAGENETTE,
        classes=10,
        how_to_get="download it with `jigclu data get imagenette`, or put Imagenette v2 (github.com/fastai/imagenette), squashed "
        f"to 128 x 128 pixels, at <data root>/imagenette/{{train,val}}/<wnid>/*.JPEG, {_LISTS}, {_ROOT}",
        folder="imagenette",
        fetcher="imagenette",
        subsets=_imagenette_subsets("imagenette"),
        square=128,
        twin="imagenette_full",
    ),
    DatasetSpec(
        name="imagenette_full",
        version="v2",  # as published: about 500 x 375 pixels
        layout="folders",
        images=_IMAGENETTE,
        classes=10,
        how_to_get="download it with `jigclu data get imagenette_full`, or unpack imagenette2.tgz (github.com/fastai/imagenette) "
        f"in the data root, {_LISTS}, {_ROOT}",
        folder="imagenette2",
        fetcher="imagenette_full",
        subsets=_imagenette_subsets("imagenette2"),
        twin="imagenette",
    ),
    DatasetSpec(
        name="imagenet100",
        version="cmc-1",
        layout="folders",
        images={"train": 126_689, "val": 5_000},  # the number in common use (protocols.md §2.2)
        classes=100,
        how_to_get=f"{_IMAGENET}, imagenet100.txt (github.com/HobbitLong/CMC) at <data root>/lists/, {_ROOT}",
        folder="imagenet1k",
        class_list=ListFile(  # HobbitLong/CMC's, the one that the paper cites (protocols.md §2.2)
            "lists/imagenet100.txt",
            "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397",
            lines=100,
        ),
        per_class=_ILSVRC2012,
    ),
    DatasetSpec(
        name="imagenet1k",
        version="2012",
        layout="folders",
        images={"train": 1_281_167, "val": 50_000},
        classes=1000,
        how_to_get=f"{_IMAGENET}, {_LISTS}, {_ROOT}",
        folder="imagenet1k",
        subsets={  # google-research/simclr's label lists (protocols.md §2.4)
            "1percent": ListFile(
                "lists/1percent.txt",
                "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
                lines=12_811,
            ),
            "10percent": ListFile(
                "lists/10percent.txt",
                "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
                lines=128_116,
            ),
        },
        per_class=_ILSVRC2012,
    ),
    DatasetSpec(
        name="cifar10",
        version="python",
        layout="cifar",
        images={"train": 50_000, "val": 10_000},
        classes=10,
        how_to_get=_CIFAR.format("cifar10", "cifar-10-batches-py"),
        folder="cifar-10-batches-py",
        fetcher="cifar",
        cifar=CifarFiles(
            reader="CIFAR10",
            train={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            test={"test_batch": "40351d587109b95175f43aff81a1287e"},
            meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        ),
    ),
    DatasetSpec(
        name="cifar100",
        version="python",
        layout="cifar",
        images={"train": 50_000, "val": 10_000},
        classes=100,
        how_to_get=_CIFAR.format("cifar100", "cifar-100-python"),
        folder="cifar-100-python",
        fetcher="cifar",
        cifar=CifarFiles(
            reader="CIFAR100",
            train={"train": "16019d7e3df5f24257cddd939b257f8d"},
            test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        ),
    ),
)
DATASETS: dict[str, DatasetSpec] = {spec.name: spec for spec in _SPECS}


def dataset_spec(name: str) -> DatasetSpec:
    """The data set's record. Raises ConfigError, naming the valid names and the nearest."""
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}; {nearest(name, DATASETS)}")
    return DATASETS[name]


def packable_names() -> list[str]:
    return [spec.name for spec in DATASETS.values() if spec.packable]


def _registered(name: str) -> str:
    return dataset_spec(name).name


# A name in DATASETS. The JSON schema lists the names that are registered when it is generated.
DatasetName = Annotated[
    str, AfterValidator(_registered), Field(json_schema_extra=lambda schema: schema.update(enum=[*DATASETS]))
]


class DataConfig(Strict):
    """A data set by name and declared version.

    `canvas`: side in pixels of the square uint8 canvas that an image is decoded to. A larger image is scaled down to fit
    with its aspect kept; the released code crops from the original (protocols.md §1.1), and ImageNet's usual 500 pixels
    are not scaled. `quality`: None: the images as they are; else scaled to the canvas and re-encoded as JPEG of this
    quality, read from a pack (`jigclu data pack`). `subset`: only SimCLR's 1 % or 10 % label list of the train
    split (drawn by rule, class-balanced, if a data set has no list; protocols.md §2.3, §2.4). `train_images` and
    `val_images`: use only this many, class-balanced; for `scenes` and `textures` how many are drawn.
    """

    name: DatasetName = "imagenet100"
    version: str = ""
    canvas: Pixels = 512
    quality: Annotated[Annotated[Integer, Field(ge=1, le=100)] | None, AddedLater] = None
    subset: Subset | None = None
    train_images: Positive | None = None
    val_images: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _declare_version(cls, values: Any) -> Any:
        return declare_version(values, DATASETS, "imagenet100")

    @model_validator(mode="after")
    def _known_version(self) -> DataConfig:
        check_version(self.name, self.version, dataset_spec(self.name).version)
        return self

    @model_validator(mode="after")
    def _packable(self) -> DataConfig:
        if self.quality is not None and not dataset_spec(self.name).packable:
            raise ValueError(
                f"quality re-encodes data sets that are folders of images ({', '.join(packable_names())}), "
                f"not {self.name}"
            )
        return self


def declare_version(values: Any, specs: Any, default: str) -> Any:
    """The values of a data config with the version that its data set declares, unless they state one."""
    if isinstance(values, dict) and not values.get("version"):
        spec = specs.get(str(values.get("name", default)))
        return {**values, "version": spec.version if spec else ""}
    return values


def check_version(name: str, version: str, declared: str) -> None:
    if version != declared:
        raise ValueError(f"data set {name} is declared at version {declared!r}, the config says {version!r}")
