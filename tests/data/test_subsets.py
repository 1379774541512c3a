"""Label subsets: exactly SimCLR's lists, or without a list an even share of every class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_cifar import small_cifar

from jigclu.config import DATASETS, ConfigError, DataConfig
from jigclu.data.catalog import catalogue, expected_images
from jigclu.data.download import write_subset_lists
from jigclu.data.sources.folders import FolderCollection, with_wnid
from jigclu.data.sources.subsets import read_list


@pytest.fixture(scope="module")
def lists(data_root: Path) -> Path:
    if not (data_root / "lists" / "1percent.txt").exists():
        pytest.skip(f"no SimCLR lists at {data_root}")
    return data_root / "lists"


def config(name: str, subset: str, **over: int) -> DataConfig:
    return DataConfig.model_validate({"name": name, "subset": subset, **over})


# -- by list ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("subset", "count"), [("1percent", 93), ("10percent", 909)])
def test_imagenettes_subset_is_the_listed_files(imagenette: Path, subset: str, count: int) -> None:
    data = config("imagenette", subset)
    part, whole = catalogue(data, "train", imagenette), catalogue(DataConfig(name="imagenette"), "train", imagenette)
    listed = (imagenette / "imagenette" / "splits" / f"simclr_{subset}.txt").read_text().split()
    assert len(part.paths) == count == expected_images(data, "train") and set(part.paths) == set(listed)
    assert part.classes == whole.classes and part.fingerprint != whole.fingerprint
    assert [part.classes[label] for label in part.labels] == [path.split("/")[0] for path in part.paths]
    assert catalogue(data, "val", imagenette).fingerprint == catalogue(whole_of(data), "val", imagenette).fingerprint
    fewer = catalogue(data.model_copy(update={"train_images": 50}), "train", imagenette)
    assert set(fewer.paths) < set(part.paths) and np.bincount(fewer.labels).tolist() == [5] * 10


def whole_of(data: DataConfig) -> DataConfig:
    return data.model_copy(update={"subset": None})


def test_imagenettes_lists_are_written_from_simclrs(imagenette: Path, lists: Path, tmp_path: Path) -> None:
    """`get imagenette` does this if SimCLR's lists are there; the result passes the digest check."""
    (tmp_path / "imagenette").mkdir()
    (tmp_path / "lists").symlink_to(lists)
    for split in ("train", "val"):
        (tmp_path / "imagenette" / split).symlink_to(imagenette / "imagenette" / split)
    messages = write_subset_lists(DataConfig(name="imagenette"), tmp_path)
    assert "93 images" in messages and "909 images" in messages
    assert len(catalogue(config("imagenette", "1percent"), "train", tmp_path).paths) == 93
    (tmp_path / "imagenette" / "splits" / "simclr_1percent.txt").write_text("n01440764/n01440764_10026.JPEG\n")
    with pytest.raises(ConfigError, match=r"simclr_1percent.txt: this is not the expected list"):
        catalogue(config("imagenette", "1percent"), "train", tmp_path)


@pytest.mark.parametrize(("subset", "sizes"), [("1percent", {13: 811, 12: 189}), ("10percent", {128: 884, 129: 116})])
def test_simclrs_lists_have_the_classes_of_the_protocol(lists: Path, subset: str, sizes: dict[int, int]) -> None:
    names = [
        with_wnid(line) for line in read_list(lists / f"{subset}.txt", DATASETS["imagenet1k"].subsets[subset].sha256)
    ]
    assert len(set(names)) == len(names) == expected_images(config("imagenet1k", subset), "train")
    _, counts = np.unique([name.split("/")[0] for name in names], return_counts=True)
    assert dict(zip(*(part.tolist() for part in np.unique(counts, return_counts=True)), strict=True)) == sizes


@pytest.fixture
def imagenet(lists: Path, tmp_path: Path) -> Iterator[tuple[FolderCollection, Path]]:
    """ImageNet's train folders with the images listed for 1 % and one more per class, and a matching record."""
    (tmp_path / "lists").symlink_to(lists)
    train = tmp_path / "imagenet1k" / "train"
    for line in (lists / "1percent.txt").read_text().split():
        (train / line.split("_")[0]).mkdir(parents=True, exist_ok=True)
        (train / with_wnid(line)).touch()
    for folder in train.iterdir():
        (folder / f"{folder.name}_0.JPEG").touch()
    yield FolderCollection(replace(DATASETS["imagenet1k"], images={"train": 13_811}, per_class=None)), tmp_path


def test_imagenets_subset_is_the_listed_files(imagenet: tuple[FolderCollection, Path]) -> None:
    collection, root = imagenet
    part = collection.open(config("imagenet1k", "1percent"), "train", root)
    listed = (root / "lists" / "1percent.txt").read_text().split()
    assert sorted(path.split("/")[1] for path in part.paths) == sorted(listed) and len(part.classes) == 1000
    assert [part.classes[label] for label in part.labels] == [name.split("_")[0] for name in sorted(listed)]


def test_a_missing_listed_image_is_named(imagenet: tuple[FolderCollection, Path]) -> None:
    collection, root = imagenet
    lines = (root / "lists" / "1percent.txt").read_text().split()
    for line in (lines[7], lines[70]):
        path = root / "imagenet1k" / "train" / with_wnid(line)
        path.rename(path.with_name("n0_elsewhere.JPEG"))
    with pytest.raises(ConfigError) as error:
        collection.open(config("imagenet1k", "1percent"), "train", root)
    assert f"2 of 12811 listed images are missing, the first is {with_wnid(lines[7])}" in str(error.value)
    assert "\n" not in str(error.value) and "google-research/simclr" in str(error.value)
    (root / "lists").unlink()
    with pytest.raises(ConfigError, match=r"1percent.txt: there is no such file"):
        collection.open(config("imagenet1k", "1percent"), "train", root)


# -- by rule ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("images", "sizes"), [(2000, (20, 200)), (505, (10, 50)), (5, (5, 5))])
def test_a_share_of_the_scenes_is_the_first_ones(images: int, sizes: tuple[int, int]) -> None:
    """1 % or 10 % of every kind, at least one; the number of scenes in the config is the whole set."""
    whole = catalogue(DataConfig(name="scenes", train_images=images), "train")
    for subset, size in zip(("1percent", "10percent"), sizes, strict=True):
        data = config("scenes", subset, train_images=images)
        part = catalogue(data, "train")
        assert part.paths.tolist() == whole.paths[:size].tolist() and len(part.paths) == expected_images(data, "train")
        assert part.classes == whole.classes and len(catalogue(data, "val").paths) == 500


def test_a_share_by_rule_is_even_and_the_smaller_is_in_the_larger(tmp_path: Path) -> None:
    small_cifar(tmp_path, each=300)
    one, ten, whole = (
        catalogue(DataConfig(name="cifar10", subset=subset), "train", tmp_path)  # type: ignore[arg-type]
        for subset in ("1percent", "10percent", None)
    )
    assert [np.bincount(part.labels).tolist() for part in (one, ten, whole)] == [[2] * 10, [15] * 10, [150] * 10]
    assert set(one.paths) < set(ten.paths) < set(whole.paths) and one.classes == whole.classes
    assert ten.paths.tolist() == [path for path in whole.paths if path in set(ten.paths)]
    assert len({part.fingerprint for part in (one, ten, whole)}) == 3
    few = catalogue(config("cifar10", "10percent", train_images=20), "train", tmp_path)
    assert set(few.paths) < set(ten.paths)
    with pytest.raises(ConfigError, match="cifar10 10percent would need 20 images of class class 0, which has 15"):
        catalogue(config("cifar10", "10percent", train_images=200), "train", tmp_path)
