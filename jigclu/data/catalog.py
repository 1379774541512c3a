"""Every data set by name: what it holds and whether it is whole. No torch: planning and the preflight ask here.

Folders of images are in folders.py, CIFAR in cifar.py, the procedural scenes in drawn.py; all below one root, JIGCLU_DATA.
"""

from __future__ import annotations

from pathlib import Path

from jigclu.config import ConfigError, DataConfig
from jigclu.data.sources import cifar, folders, scene_source
from jigclu.data.sources.base import SPLITS, Collection, Source, Split, data_root
from jigclu.data.sources.subsets import SHARES, wanted

__all__ = ["SPLITS", "Source", "Split", "data_root"]

# What a whole set holds; ImageNet-100's is the number in common use (protocols.md §2.2).
IMAGES: dict[str, dict[str, int]] = {
    "scenes": scene_source.IMAGES,
    "imagenette": {"train": 9_469, "val": 3_925},
    "imagenet100": {"train": 126_689, "val": 5_000},
    "imagenet1k": {"train": 1_281_167, "val": 50_000},
    "cifar10": cifar.OFFICIAL,
    "cifar100": cifar.OFFICIAL,
}
# Lines of the label lists (protocols.md §2.4; shared/data/README.md).
LISTED = {
    "imagenette": {"1percent": 93, "10percent": 909},
    "imagenet1k": {"1percent": 12_811, "10percent": 128_116},
}
BY_RULE = {"scenes": 10, "imagenet100": 100, "cifar10": 10, "cifar100": 100}  # classes of the sets that no list is of
COLLECTIONS: dict[str, Collection] = {
    "scenes": scene_source.SceneCollection(),
    "imagenette": folders.FolderCollection(
        folder="imagenette",
        classes=10,
        images=IMAGES["imagenette"],
        subset_lists="imagenette/splits/simclr_{}.txt",
        subset_sha256=folders.IMAGENETTE_SHA256,
    ),
    "imagenet100": folders.FolderCollection(
        folder="imagenet1k",
        classes=100,
        class_list="lists/imagenet100.txt",
        list_sha256=folders.IMAGENET100_SHA256,
    ),
    "imagenet1k": folders.FolderCollection(
        folder="imagenet1k",
        classes=1000,
        subset_lists="lists/{}.txt",
        subset_sha256=folders.SIMCLR_SHA256,
    ),
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
}


def catalogue(data: DataConfig, split: Split, root: Path | None = None) -> Source:
    """The images that the config takes of one split. Raises ConfigError where the data set is not whole."""
    return COLLECTIONS[data.name].open(data, split, data_root(root))


def check(data: DataConfig, root: Path | None = None) -> None:
    """Raises ConfigError (one line: which folder was looked in, how to get it) unless both splits are whole."""
    COLLECTIONS[data.name].check(data, data_root(root))


def check_whole(data: DataConfig, root: Path | None = None) -> None:
    """Raises ConfigError where the config wants every image of a set of which a part lies here, with digests of its own."""
    collection = COLLECTIONS[data.name]
    if not isinstance(collection, cifar.CifarCollection) or None not in (data.train_images, data.val_images):
        return
    sums = data_root(root) / collection.folder / cifar.SUMS
    if sums.exists():
        raise ConfigError(
            f"data set {data.name}: {sums.absolute()} says that this is not the official set; "
            "get that, or set data.train_images and data.val_images to how many of these are to be used"
        )


def expected_images(data: DataConfig, split: Split) -> int:
    """How many images the config takes of a whole data set, by the numbers stated here: planning touches no data."""
    count = wanted(data, split)
    whole = IMAGES[data.name][split]
    if data.name == "scenes":  # the number asked for is the whole set
        whole, count = count or whole, None
    if data.subset and split == "train":
        whole = LISTED.get(data.name, {}).get(data.subset) or _by_rule(whole, BY_RULE[data.name], SHARES[data.subset])
    return min(count or whole, whole)


def _by_rule(whole: int, classes: int, share: float) -> int:
    """What parts.by_rule takes of classes as even as can be."""
    each, rest = divmod(whole, classes)
    sizes = [each + (place < rest) for place in range(classes)]
    return sum(min(size, max(1, round(share * size))) for size in sizes)
