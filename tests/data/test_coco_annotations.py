"""Annotations that pycocotools would misread, or reject only after the training, are named when the data is opened."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jigclu.config import ConfigError
from jigclu.config.detection import DETECTION_DATASETS, DetectionDataConfig
from jigclu.data.sources import folder_index
from jigclu.data.sources.coco import check, open_split
from jigclu.data.sources.coco_annotations import parse
from jigclu.data.sources.subsets import IncompleteDatasetError

COCO = DetectionDataConfig(name="coco")
VALUES: dict[str, Any] = {
    "images": [{"id": 10 + i, "file_name": f"{i:012}.jpg", "width": 60, "height": 50} for i in range(4)],
    "annotations": [
        {"id": 1 + i, "image_id": 10 + i % 4, "category_id": 1 + i % 2, "bbox": [2.0 * i, i, 20, 30], "area": 600, "iscrowd": 0}
        for i in range(8)
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "cup"}],
}  # fmt: skip


def annotations(root: Path, split: str) -> Path:
    return root / "coco" / "annotations" / f"instances_{split}2017.json"


def write(root: Path, split: str, values: dict[str, Any]) -> None:
    annotations(root, split).write_text(json.dumps(values))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(DETECTION_DATASETS, "coco", replace(DETECTION_DATASETS["coco"], images={"train": 4, "val": 4}))
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "coco" / f"{split}2017").mkdir()
        for image in VALUES["images"]:
            colour = "red" if split == "train" else "blue"
            Image.new("RGB", (60, 50), colour).save(tmp_path / "coco" / f"{split}2017" / image["file_name"])
        write(tmp_path, split, VALUES)
    return tmp_path


def refusals(root: Path) -> set[str]:
    found = set()
    for use in (lambda: check(COCO, root), lambda: open_split(COCO, "train", root, root / "unused")):
        with pytest.raises(ConfigError) as error:
            use()
        assert "\n" not in str(error.value)
        found.add(str(error.value))
    return found


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([{"id": 1, "name": "cup"}, {"id": 2, "name": "person"}], "category 1 is person in train and cup in val"),
        ([{"id": 1, "name": "person"}, {"id": 3, "name": "cup"}], "category 2 (cup) is only in train"),
        ([*VALUES["categories"], {"id": 9, "name": "zebra"}], "category 9 (zebra) is only in val"),
    ],
)
def test_categories_that_differ_between_the_splits_are_named(
    categories: list[dict[str, Any]], expected: str, root: Path
) -> None:
    changed = copy.deepcopy(VALUES)
    for box in changed["annotations"]:
        box["category_id"] = 1
    write(root, "val", {**changed, "categories": categories})
    (message,) = refusals(root)
    assert f"looked in {root}/coco/annotations: train and val have different categories: {expected};" in message


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        ("annotations", {"image_id": "11"}, "annotation 2: image_id must be an integer, as the ids are, not '11'"),
        ("annotations", {"image_id": 99}, "annotation 2: image_id 99 is not in the file"),
        ("annotations", {"category_id": 7}, "annotation 2: category_id 7 is not in the file"),
        ("annotations", {"id": 1}, "two annotation entries have the id 1"),
        ("annotations", {"id": "a"}, "annotation 'a': id 'a': no integer"),
        ("annotations", {"area": None}, "annotation 2: area must be a number of pixels, not None"),
        ("annotations", {"iscrowd": None}, "annotation 2: iscrowd must be 0 or 1, not None"),
        ("annotations", {"bbox": None}, "annotation 2: bbox must be [left, upper, width, height] in pixels, not None"),
        ("annotations", {"bbox": [0, 0, -3, 4]}, "not [0, 0, -3, 4]"),
        ("annotations", {"bbox": [0, 0, float("nan"), 4]}, "not [0, 0, nan, 4]"),
        ("annotations", {"area": float("nan")}, "area must be a number of pixels, not nan"),
        ("images", {"id": 10}, "two image entries have the id 10"),
        ("images", {"file_name": f"{0:012}.jpg"}, f"two image entries have the file name '{0:012}.jpg'"),
        ("images", {"height": 0}, "image 11: height must be a number of pixels, not 0"),
        ("categories", {"id": 1}, "two category entries have the id 1"),
    ],
)
def test_what_the_evaluation_cannot_use_is_named_before_the_training(
    part: str, changes: dict[str, Any], expected: str, root: Path
) -> None:
    values = copy.deepcopy(VALUES)
    values[part][1].update(changes)
    write(root, "train", values)
    (message,) = refusals(root)
    assert f"looked in {annotations(root, 'train')}: " in message and expected in message


def test_missing_keys_are_named_too(root: Path) -> None:
    for key in ("bbox", "area", "iscrowd", "image_id", "category_id", "id"):
        values = copy.deepcopy(VALUES)
        del values["annotations"][1][key]
        with pytest.raises(IncompleteDatasetError, match=key):
            parse(json.dumps(values).encode(), Path("file"))


def test_a_perfect_detector_scores_100_with_box_ids_from_0() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    values = copy.deepcopy(VALUES)
    for number, box in enumerate(values["annotations"]):
        box["id"] = number
    values["annotations"].append({**values["annotations"][0], "id": 99, "bbox": [1, 1, 0, 9], "area": 0})

    def ap(given: dict[str, Any]) -> float:
        truth = coco.COCO()
        truth.dataset = given
        truth.createIndex()
        perfect = [{**box, "score": 1.0} for box in given["annotations"]]
        run = cocoeval.COCOeval(truth, truth.loadRes(perfect), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
        return float(run.stats[0])

    assert ap(copy.deepcopy(values)) < 0.9, "what pycocotools makes of a box with id 0"
    assert ap(parse(json.dumps(values).encode(), Path("file"))) == pytest.approx(1.0)


def test_the_checks_are_repeated_only_if_the_file_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_index, "SETTLED_NS", -1)
    read: list[Path] = []

    def counted(text: bytes, path: Path) -> dict[str, Any]:
        read.append(path)
        return parse(text, path)

    monkeypatch.setattr("jigclu.data.sources.coco_annotations.parse", counted)
    check(COCO, root)
    check(COCO, root)
    assert len(read) == 2
    write(root, "val", {**VALUES, "info": {}})
    check(COCO, root)
    assert len(read) == 3
