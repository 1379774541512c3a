"""Imagenette squashed to 128 x 128 pixels and as published: two data sets, and the wrong one is one line."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from jigclu.config import DATASETS, ConfigError, DataConfig
from jigclu.data import download
from jigclu.data.__main__ import main
from jigclu.data.catalog import catalogue, check

COUNTS = {"train": 20, "val": 10}


def images(folder: Path, size: tuple[int, int]) -> None:
    for split, count in COUNTS.items():
        for i in range(count):
            path = folder / split / f"n{i % 10}" / f"{i:04}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (10 * i, 100 + 99 * (split == "val"), 200)).save(path)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JIGCLU_CACHE", str(tmp_path / "cache"))
    for name in ("imagenette", "imagenette_full"):
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], images=COUNTS, subsets={}))


def test_both_forms_can_be_in_one_root(tmp_path: Path) -> None:
    images(tmp_path / "imagenette", (128, 128))
    images(tmp_path / "imagenette2", (200, 150))
    for name in ("imagenette", "imagenette_full"):
        check(DataConfig(name=name), tmp_path)
    versions = {name: DataConfig(name=name).version for name in ("imagenette", "imagenette_full")}
    assert versions == {"imagenette": "v2-128px", "imagenette_full": "v2"}


@pytest.mark.parametrize(
    ("name", "folder", "size", "error"),
    [
        ("imagenette", "imagenette", (200, 150), "not all 128 x 128 pixels, so it is data set imagenette_full"),
        ("imagenette_full", "imagenette2", (128, 128), "all 128 x 128 pixels, so it is data set imagenette:"),
    ],
)
def test_the_wrong_form_is_one_line_that_says_where_it_belongs(
    name: str, folder: str, size: tuple[int, int], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / folder, size)
    other = {"imagenette": "imagenette2", "imagenette2": "imagenette"}[folder]
    with pytest.raises(ConfigError, match=error):
        catalogue(DataConfig(name=name), "val", tmp_path)
    assert main(["check", name, "--root", str(tmp_path)]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and error in line and f"move it to {tmp_path / other} and use that name" in line


def test_a_single_image_of_another_size_is_no_squashed_set(tmp_path: Path) -> None:
    images(tmp_path / "imagenette", (128, 128))
    Image.new("RGB", (128, 96)).save(tmp_path / "imagenette/val/n1/0001.JPEG")
    with pytest.raises(ConfigError, match="not all 128 x 128"):
        check(DataConfig(name="imagenette"), tmp_path)


def test_get_lays_down_either_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download itself is replaced; both start from the published archive."""
    fetched = types.ModuleType("torchvision.datasets")
    fetched.Imagenette = lambda root, size, download: images(Path(root) / "imagenette2", (200, 150))  # type: ignore
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fetched)
    for name, folder, size in (
        ("imagenette", "imagenette", (128, 128)),
        ("imagenette_full", "imagenette2", (200, 150)),
    ):
        text = download.get(DataConfig(name=name), tmp_path)
        assert f"{name} is in {tmp_path / folder}, verified" in text
        assert ("original size" in text) == (name == "imagenette_full")
        with Image.open(tmp_path / folder / "train/n0/0000.JPEG") as image:
            assert image.size == size
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["imagenette", "imagenette2"]
