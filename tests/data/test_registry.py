"""A data set is one record: every table is derived from it, and an unknown name is a one-line error everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jigclu.config import DATASETS, ConfigError, DataConfig, DatasetSpec, identity, parse
from jigclu.config.detection import DETECTION_DATASETS, DetectionDataConfig
from jigclu.data.__main__ import main
from jigclu.data.catalog import LAYOUTS, catalogue, check, check_whole, expected_images
from jigclu.data.download import FETCHERS, DownloadError, get, write_subset_lists
from jigclu.data.pack_writer import pack
from jigclu.data.sources import coco
from orchestrate.planning.overlays import data_keys

STL10 = DatasetSpec(
    name="stl10",
    version="2011",
    layout="folders",
    images={"train": 40, "val": 20},
    classes=10,
    folder="stl10",
    how_to_get="get STL-10 from ai.stanford.edu as stl10/{train,val}/<class>/*.png, then set JIGCLU_DATA",
)


@pytest.fixture
def stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with the whole of a small data set that is registered by its record alone."""
    monkeypatch.setitem(DATASETS, "stl10", STL10)
    noise = np.random.default_rng(0)
    for split, count in STL10.images.items():
        for i in range(count):
            path = tmp_path / "root" / "stl10" / split / f"class{i % 10}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "root"


def test_a_record_is_enough_to_plan_and_read_a_data_set(stl10: Path) -> None:
    config = parse("pretrain", {"data": {"name": "stl10", "canvas": 24}})
    assert identity(config)["data"]["version"] == "2011"
    assert "stl10" in DataConfig.model_json_schema()["properties"]["name"]["enum"]
    assert {"stl10", "stl10/1percent", "stl10/10percent"} <= set(data_keys())
    assert [expected_images(config.data, split) for split in ("train", "val")] == [40, 20]
    tenth = config.data.model_copy(update={"subset": "10percent"})
    assert expected_images(tenth, "train") == len(catalogue(tenth, "train", stl10).paths) == 10
    source = catalogue(config.data, "train", stl10)
    assert len(source.paths) == 40 and len(source.classes) == 10 and source.pixels(3, 24).shape == (3, 24, 24)
    check(config.data, stl10)
    check_whole(config.data, stl10)


def test_a_record_is_enough_for_check_get_and_pack(
    stl10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(stl10)]
    assert main(["check", "stl10", *root]) == 0
    assert "stl10 2011: complete" in capsys.readouterr().out
    assert main(["pack", "stl10", "--canvas", "24", "--workers", "0", *root]) == 0
    assert main(["check", "stl10", *root]) == 0
    assert "pack   " in capsys.readouterr().out
    main(["check", "all", *root])
    assert re.search(r"^stl10 +ok \(", capsys.readouterr().out, re.MULTILINE)
    for arguments, status in ((["get", "stl10"], 2), (["check", "stl10"], 1)):
        assert main([*arguments, "--root", str(tmp_path / "empty")]) == status
        error = capsys.readouterr().err
        assert "ai.stanford.edu" in error and error.count("\n") == 1
    with pytest.raises(DownloadError, match=r"ai\.stanford\.edu"):
        get(DataConfig(name="stl10"), tmp_path)


def test_every_record_names_a_layout_a_fetcher_and_its_own_key() -> None:
    for name, spec in DATASETS.items():
        assert name == spec.name and spec.layout in LAYOUTS and spec.fetcher in ("", *FETCHERS)
        assert (
            spec.images.keys() == {"train", "val"} and spec.how_to_get and bool(spec.cifar) == (spec.layout == "cifar")
        )
    for name, detection in DETECTION_DATASETS.items():
        assert name == detection.name and detection.how_to_get and name not in DATASETS


UNKNOWN = DataConfig().model_copy(update={"name": "imagenete"})
UNKNOWN_BOXES = DetectionDataConfig().model_copy(update={"name": "coco_min"})


@pytest.mark.parametrize(
    "use",
    [
        lambda root: parse("linear", {"data": {"name": "imagenete"}}),
        lambda root: catalogue(UNKNOWN, "train", root),
        lambda root: catalogue(UNKNOWN.model_copy(update={"subset": "1percent"}), "train", root),
        lambda root: check(UNKNOWN, root),
        lambda root: check_whole(UNKNOWN, root),
        lambda root: expected_images(UNKNOWN, "train"),
        lambda root: expected_images(UNKNOWN.model_copy(update={"subset": "1percent"}), "train"),
        lambda root: get(UNKNOWN, root),
        lambda root: write_subset_lists(UNKNOWN, root),
        lambda root: pack(UNKNOWN, root, 0),
        lambda root: coco.check(UNKNOWN_BOXES, root),
        lambda root: coco.expected_images(UNKNOWN_BOXES, "train"),
        lambda root: coco.open_split(UNKNOWN_BOXES, "train", root, root),
        lambda root: parse("detect", {"data": {"name": "coco_min"}}),
    ],
)
def test_an_unknown_name_is_a_one_line_error_wherever_it_is_looked_up(
    use: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"unknown (detection )?data set '.*; valid: .*; did you mean") as error:
        use(tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["check", "get", "pack"])
def test_an_unknown_name_on_the_command_line_is_a_one_line_error(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "imagenete", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (
        "unknown data set 'imagenete'; valid: " in error
        and "did you mean imagenette?" in error
        and error.count("\n") == 1
    )


def test_a_subset_without_a_list_is_drawn_by_rule_and_with_one_is_counted_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = DataConfig(name="imagenette", subset="1percent")
    assert expected_images(data, "train") == 93
    monkeypatch.setitem(DATASETS, "imagenette", replace(DATASETS["imagenette"], subsets={}))
    assert expected_images(data, "train") == 90
