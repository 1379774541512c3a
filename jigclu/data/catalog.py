"""Every data set by name: what it contains and whether it is complete. No torch: planning and preflight call this.

The records are in config/datasets.py; here a record's layout selects the collection that reads it. All data sets are
below one root, JIGCLU_DATA.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jigclu.config import (
    ConfigError,
    DataConfig,
    DatasetSpec,
    DetectConfig,
    EvaluationConfig,
    PretrainConfig,
    dataset_spec,
)
from jigclu.config.datasets import Layout
from jigclu.data.sources import cifar, coco, drawn, folders
from jigclu.data.sources.base import SPLITS, Collection, Source, Split, data_root
from jigclu.data.sources.folder_index import SUMS
from jigclu.data.sources.subsets import SHARES, wanted

__all__ = ["SPLITS", "Source", "Split", "data_root"]

LAYOUTS: dict[Layout, Callable[[DatasetSpec], Collection]] = {
    "folders": folders.FolderCollection,
    "cifar": cifar.CifarCollection,
    "drawn": drawn.DrawnCollection,
}


def collection(name: str) -> Collection:
    """The collection that reads the data set. Raises ConfigError (one line) on an unknown name."""
    spec = dataset_spec(name)
    return LAYOUTS[spec.layout](spec)


def catalogue(data: DataConfig, split: Split, root: Path | None = None) -> Source:
    """The images of one split that the config selects. Raises ConfigError if the data set is incomplete."""
    return collection(data.name).open(data, split, data_root(root))


def check(data: DataConfig, root: Path | None = None) -> None:
    """Raises ConfigError (one line: which folder was searched, how to get the data) unless both splits are complete."""
    collection(data.name).check(data, data_root(root))


def check_whole(data: DataConfig, root: Path | None = None) -> None:
    """Raises ConfigError if the config takes all images of a set that is only a part here, with its own digests."""
    spec = dataset_spec(data.name)
    if spec.layout != "cifar" or None not in (data.train_images, data.val_images):
        return
    sums = data_root(root) / spec.folder / SUMS
    if sums.exists():
        raise ConfigError(
            f"data set {data.name}: this is not the official set, because {sums.absolute()} gives it its own digests; "
            "get the official one, or set data.train_images and data.val_images to how many images to use"
        )


def current_fingerprint(config: PretrainConfig | EvaluationConfig | DetectConfig, root: Path | None = None) -> str:
    """What a job with this config would record now as `data_fingerprint`: of each split that it reads, joined by `+`.

    Cheap: listings and digests are cached until a class folder or file changes, and no image is read. No torch.

    Raises:
        ConfigError: the data is not there, or is incomplete.
    """
    root = data_root(root)
    if isinstance(config, DetectConfig):
        return "+".join(coco.fingerprint(config.data, split, root) for split in SPLITS)
    images, splits = collection(config.data.name), SPLITS[:1] if isinstance(config, PretrainConfig) else SPLITS
    return "+".join(images.fingerprint(config.data, split, root) for split in splits)


def expected_images(data: DataConfig, split: Split) -> int:
    """How many images the config takes of a complete data set, from its record: planning reads no data."""
    spec, count = dataset_spec(data.name), wanted(data, split)
    whole = spec.images[split]
    if spec.layout == "drawn":  # the number in the config is the whole set
        whole, count = count or whole, None
    if data.subset and split == "train":
        listed = spec.subsets.get(data.subset)
        whole = listed.lines if listed else _by_rule(whole, spec.classes, SHARES[data.subset])
    return min(count or whole, whole)


def _by_rule(whole: int, classes: int, share: float) -> int:
    """How many images subsets.by_rule takes if the classes are as even as possible."""
    each, rest = divmod(whole, classes)
    sizes = [each + (index < rest) for index in range(classes)]
    return sum(min(size, max(1, round(share * size))) for size in sizes)
