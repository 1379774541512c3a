"""ImageNet-1k and ImageNet-100: which folders they consist of, and the errors for an incomplete set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jigclu.config import ConfigError, DataConfig
from jigclu.data.catalog import catalogue, check

ROOT = Path(os.environ.get("JIGCLU_DATA") or "data").resolve()
needs_list = pytest.mark.skipif(not (ROOT / "lists").is_dir(), reason="no lists; set JIGCLU_DATA")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Empty files in ImageNet's shape: 1000 classes that are links to one folder per split."""
    for split, count in (("train", 732), ("val", 50)):
        files, folder = tmp_path / f"files-{split}", tmp_path / "imagenet1k" / split
        files.mkdir()
        folder.mkdir(parents=True)
        for i in range(count):
            (files / f"{i}.JPEG").touch()
        listed = (ROOT / "lists" / "imagenet100.txt").read_text().split()
        for wnid in [*listed, *(f"n{i:08}" for i in range(900))]:
            (folder / wnid).symlink_to(files)
    (tmp_path / "lists").symlink_to(ROOT / "lists")
    return tmp_path


@needs_list
def test_imagenet100_is_the_listed_folders_of_imagenet1k(imagenet: Path) -> None:
    check(DataConfig(name="imagenet1k"), imagenet)
    listed = (ROOT / "lists" / "imagenet100.txt").read_text().split()
    found = catalogue(DataConfig(name="imagenet100"), "train", imagenet)
    assert found.classes == sorted(listed) != listed and np.bincount(found.labels).tolist() == [732] * 100


@needs_list
@pytest.mark.parametrize(
    ("split", "expected"), [("train", "731 images, not at least 732"), ("val", "49 images, not 50")]
)
def test_a_short_imagenet_class_is_an_error(imagenet: Path, split: str, expected: str) -> None:
    (imagenet / f"files-{split}" / "0.JPEG").unlink()
    with pytest.raises(ConfigError, match=expected):
        check(DataConfig(name="imagenet100"), imagenet)


@needs_list
def test_missing_classes_and_a_wrong_list_are_errors(imagenet: Path) -> None:
    (imagenet / "imagenet1k" / "val" / "n02869837").unlink()
    with pytest.raises(ConfigError, match="different class folders: only train has n02869837"):
        catalogue(DataConfig(name="imagenet1k"), "val", imagenet)
    with pytest.raises(ConfigError, match="1 of 100 class folders are missing, the first is n02869837"):
        check(DataConfig(name="imagenet100"), imagenet)
    (imagenet / "lists").unlink()
    (imagenet / "lists").mkdir()
    (imagenet / "lists" / "imagenet100.txt").write_text("n02869837\n")
    with pytest.raises(ConfigError, match="not the expected list"):
        check(DataConfig(name="imagenet100"), imagenet)


@needs_list
def test_imagenet100s_subset_is_a_share_of_every_class(imagenet: Path) -> None:
    """It has no list: drawn by rule, from the train split only."""
    one, ten = (
        catalogue(DataConfig(name="imagenet100", subset=subset), "train", imagenet)  # type: ignore[arg-type]
        for subset in ("1percent", "10percent")
    )
    assert [np.bincount(part.labels).tolist() for part in (one, ten)] == [[7] * 100, [73] * 100]
    assert set(one.paths) < set(ten.paths) and one.classes == ten.classes and len(one.classes) == 100
    assert len(catalogue(DataConfig(name="imagenet100", subset="1percent"), "val", imagenet).paths) == 5000
