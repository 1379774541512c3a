"""Data sets in COCO's format: photographs and parts of them, drawn scenes, checks, and the solver's arithmetic."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jigclu.config import ConfigError
from jigclu.config.detection import COCO_IMAGES, DETECTION_DATASETS, DetectionDataConfig, Solver
from jigclu.data.__main__ import main
from jigclu.data.sources import coco, scenes
from jigclu.data.sources.base import Split
from jigclu.data.sources.coco import DetectionSplit, check, expected_images, open_split

MINI = DetectionDataConfig(name="coco_mini")
FULL = DetectionDataConfig(name="coco")
FAKE = {"train": 6, "val": 3}


def opened(data: DetectionDataConfig, split: Split, root: Path) -> DetectionSplit:
    return open_split(data, split, root, root / "unused")


def names(split: DetectionSplit) -> list[str]:
    return [image["file_name"] for image in split.annotations["images"]]


def refusal(root: Path, data: DetectionDataConfig = MINI) -> str:
    """The one line that opening it raises."""
    with pytest.raises(ConfigError) as error:
        opened(data, "train", root)
    assert "\n" not in str(error.value)
    return str(error.value)


def annotations_of(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}2017.json"


def seal(folder: Path) -> None:
    paths = [annotations_of(folder, split) for split in FAKE]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  annotations/{path.name}\n" for path in paths]
    (folder / coco.SUMS).write_text("".join(lines))


def resize(monkeypatch: pytest.MonkeyPatch, name: str, images: dict[str, int]) -> None:
    """Register the data set with other numbers of images."""
    monkeypatch.setitem(DETECTION_DATASETS, name, replace(DETECTION_DATASETS[name], images=images))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a complete COCO of 6 and 3 photographs: each has a box of three categories, one also a crowd."""
    for name in ("coco", "coco_mini"):
        resize(monkeypatch, name, FAKE)
    folder = tmp_path / "root" / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split, count in FAKE.items():
        (folder / f"{split}2017").mkdir()
        for i in range(count):
            Image.new("RGB", (8 + i, 6), "red" if split == "train" else "blue").save(
                folder / f"{split}2017" / f"{i:012}.jpg"
            )
        images = [{"id": 10 + i, "file_name": f"{i:012}.jpg", "width": 8 + i, "height": 6} for i in range(count)]
        boxes = [(10 + i, category, 0) for i in range(count) for category in (1, 5, 7)] + [(10, 5, 1)]
        values = {
            "images": images[::-1],
            "annotations": [
                {"id": i, "image_id": image, "category_id": kind, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": crowd}
                for i, (image, kind, crowd) in enumerate(boxes, 1)
            ],
            "categories": [{"id": 7, "name": "zebra"}, {"id": 1, "name": "person"}, {"id": 5, "name": "cup"}],
        }
        annotations_of(folder, split).write_text(json.dumps(values))
    seal(folder)
    return folder.parent


# -- the photographs --------------------------------------------------------------------------------------------------
def test_coco_mini_has_its_photographs_boxes_and_categories(data_root: Path) -> None:
    for split, images, boxes, crowds in (("train", 343, 2974, 29), ("val", 206, 1786, 21)):
        found = opened(MINI, split, data_root)  # type: ignore[arg-type]
        assert len(found.annotations["images"]) == images == len(set(names(found)))
        assert len(found.annotations["annotations"]) == boxes
        assert sum(box["iscrowd"] for box in found.annotations["annotations"]) == crowds
        assert len(found.categories) == 80 and found.categories[::79] == ["person", "toothbrush"]
        assert all((found.folder / name).is_file() for name in names(found))


def test_categories_stand_in_the_order_of_their_ids(fake: Path) -> None:
    assert opened(MINI, "train", fake).categories == ["person", "cup", "zebra"]


def test_a_part_does_not_depend_on_file_order_and_is_in_every_larger_one(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, more = (MINI.model_copy(update={"train_images": count}) for count in (50, 120))
    once = opened(few, "train", data_root)
    real = os.scandir

    @contextlib.contextmanager
    def backwards(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        yield reversed(list(real(folder)))

    monkeypatch.setattr(os, "scandir", backwards)
    monkeypatch.setenv("JIGCLU_CACHE", "/dev/null/cache")
    again = opened(few, "train", data_root)
    assert again.annotations == once.annotations and again.fingerprint == once.fingerprint
    larger = opened(more, "train", data_root)
    assert len(names(once)) == 50 and len(names(larger)) == 120 and set(names(once)) < set(names(larger))
    assert larger.fingerprint != once.fingerprint
    assert len(once.categories) == 80 and once.categories == larger.categories


def test_a_part_has_exactly_the_annotations_of_its_images(data_root: Path) -> None:
    whole = opened(MINI, "val", data_root).annotations
    few = opened(MINI.model_copy(update={"val_images": 40}), "val", data_root).annotations
    ids = [image["id"] for image in few["images"]]
    assert ids == sorted(ids)
    expected = [box for box in whole["annotations"] if box["image_id"] in set(ids)]
    assert few["annotations"] == expected and 0 < len(expected) < len(whole["annotations"])


def test_the_order_in_which_a_file_lists_its_images_does_not_matter(fake: Path) -> None:
    assert [image["id"] for image in opened(MINI, "train", fake).annotations["images"]] == [10, 11, 12, 13, 14, 15]


def test_the_fingerprint_changes_with_a_photographs_size_and_with_the_annotations(fake: Path) -> None:
    def fingerprints() -> list[str]:
        return [opened(MINI, split, fake).fingerprint for split in ("train", "val")]

    before = fingerprints()
    assert before == fingerprints() and before[0] != before[1]
    with (fake / "coco" / "train2017" / f"{2:012}.jpg").open("ab") as file:
        file.write(b"\0")
    larger = fingerprints()
    assert larger[0] != before[0] and larger[1] == before[1]
    path = annotations_of(fake / "coco", "val")
    values = json.loads(path.read_text())
    values["annotations"][0]["bbox"][2] = 5
    path.write_text(json.dumps(values))
    seal(fake / "coco")
    moved = fingerprints()
    assert moved[0] == larger[0] and moved[1] != larger[1]


# -- is it complete ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [FULL, MINI], ids=lambda data: data.name)
def test_a_missing_folder_says_where_it_looked_and_how_to_get_it(data: DetectionDataConfig, tmp_path: Path) -> None:
    error = refusal(tmp_path, data)
    assert f"data set {data.name}: looked in {tmp_path}/coco/train2017: there is no such folder" in error
    assert "cocodataset.org" in error and "JIGCLU_DATA" in error
    assert ("--scale smoke" in error) == (data is MINI)


def test_a_wrong_number_of_photographs_is_an_error(fake: Path) -> None:
    folder = fake / "coco" / "val2017"
    check(MINI, fake)
    (folder / "notes.txt").write_text("not a photograph")
    check(MINI, fake)
    (folder / f"{1:012}.jpg").unlink()
    assert f"looked in {folder}: 2 photographs, not 3" in refusal(fake)
    (folder / f"{1:012}.jpg").symlink_to(folder / "gone")
    assert f"looked in {folder}: 2 photographs, not 3" in refusal(fake)


def test_the_photographs_of_coco_mini_are_not_taken_for_coco(data_root: Path) -> None:
    assert "343 photographs, not 118287" in refusal(data_root, FULL)


@pytest.mark.parametrize("data", [FULL, MINI], ids=lambda data: data.name)
def test_missing_annotations_are_an_error(data: DetectionDataConfig, fake: Path) -> None:
    path = annotations_of(fake / "coco", "val")
    check(data, fake)
    path.unlink()
    assert f"looked in {path}: there is no such file" in refusal(fake, data)


def test_altered_annotations_and_missing_digests_are_errors(fake: Path) -> None:
    path, sums = annotations_of(fake / "coco", "train"), fake / "coco" / coco.SUMS
    path.write_text(path.read_text() + " ")
    assert f"looked in {path}: it is not the file that {coco.SUMS} lists" in refusal(fake)
    check(FULL, fake)  # its files have no published digests
    seal(fake / "coco")
    check(MINI, fake)
    listed = sums.read_text().splitlines()
    sums.write_text(listed[1] + "\n")
    assert f"looked in {path}: it is not the file" in refusal(fake)
    sums.unlink()
    assert f"looked in {sums}: there is no such file" in refusal(fake)


@pytest.mark.parametrize("text", ['{"images": [', "[]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}'])
def test_unreadable_annotations_are_a_one_line_error(text: str, fake: Path) -> None:
    path = annotations_of(fake / "coco", "train")
    path.write_text(text)
    error = refusal(fake, FULL)
    assert f"looked in {path}: not annotations in COCO's format" in error and "cocodataset.org" in error


def test_a_photograph_missing_from_the_annotations_is_an_error(fake: Path) -> None:
    folder = fake / "coco" / "train2017"
    (folder / f"{3:012}.jpg").rename(folder / "unknown.jpg")
    path = annotations_of(fake / "coco", "train")
    assert f"looked in {path}: it lists 5 of the 6 photographs" in refusal(fake)


def test_asking_for_more_photographs_than_there_are_names_the_numbers(fake: Path) -> None:
    check(MINI.model_copy(update={"train_images": 6, "val_images": 3}), fake)
    error = refusal(fake, MINI.model_copy(update={"val_images": 4}))
    assert "data.val_images=4" in error and "coco_mini has 3" in error


# -- drawn scenes -----------------------------------------------------------------------------------------------------
SCENES = DetectionDataConfig(name="coco_scenes", train_images=12, val_images=7, size=48)


@pytest.mark.parametrize("split", ["train", "val"])
def test_drawn_scenes_are_the_scenes_with_their_boxes(split: Split, tmp_path: Path) -> None:
    drawn = open_split(SCENES, split, tmp_path / "no root", tmp_path / "drawn")
    boxes: dict[int, list[dict[str, Any]]] = {}
    for box in drawn.annotations["annotations"]:
        boxes.setdefault(box["image_id"], []).append(box)
    assert len(names(drawn)) == expected_images(SCENES, split) and len(boxes) == len(names(drawn))
    for index, image in enumerate(drawn.annotations["images"]):
        pixels, label, corners, kinds = scenes.scene(index, split, 48)
        with Image.open(drawn.folder / image["file_name"]) as picture:
            np.testing.assert_array_equal(np.array(picture).transpose(2, 0, 1), pixels)
        assert (image["width"], image["height"]) == (48, 48)
        found = np.array([box["bbox"] for box in boxes[image["id"]]], np.float32)
        np.testing.assert_array_equal(np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1), corners)
        ids = [box["category_id"] - 1 for box in boxes[image["id"]]]
        assert ids == kinds.tolist() and ids[0] == label


def test_drawn_scenes_have_ids_of_their_own_areas_and_every_kind(tmp_path: Path) -> None:
    drawn = open_split(SCENES, "train", tmp_path, tmp_path)
    for part in ("images", "annotations"):
        ids = [entry["id"] for entry in drawn.annotations[part]]
        assert len(ids) == len(set(ids)) and min(ids) == 1  # pycocotools treats a match with box 0 as no match
    assert len(drawn.annotations["annotations"]) > len(names(drawn))
    assert drawn.categories == list(scenes.KINDS)
    for box in drawn.annotations["annotations"]:
        assert box["area"] == box["bbox"][2] * box["bbox"][3] > 0 and box["iscrowd"] == 0


def test_the_fingerprint_of_scenes_changes_with_their_number_size_and_split(tmp_path: Path) -> None:
    others = [{}, {"train_images": 13}, {"size": 40}]
    drawn = [open_split(SCENES.model_copy(update=update), "train", tmp_path, tmp_path) for update in others]
    found = [split.fingerprint for split in (*drawn, open_split(SCENES, "val", tmp_path, tmp_path))]
    assert len(set(found)) == 4
    assert open_split(SCENES, "train", tmp_path, tmp_path / "elsewhere").fingerprint == found[0]
    assert DETECTION_DATASETS["coco_scenes"].version == str(scenes.VERSION)


@pytest.mark.skipif(
    not importlib.util.find_spec("pycocotools"),
    reason="detectron2 is not importable: no pycocotools, which comes with it",
)
def test_pycocotools_scores_correct_boxes_of_scenes_1_and_shifted_ones_0(tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    drawn = open_split(SCENES, "val", tmp_path, tmp_path / "drawn")
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps(drawn.annotations))

    def precision(shift: float) -> float:
        boxes = [
            {key: box[key] for key in ("image_id", "category_id")}
            | {"bbox": [box["bbox"][0] + shift, *box["bbox"][1:]], "score": 0.9}
            for box in drawn.annotations["annotations"]
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            truth = COCO(str(path))
            scored = COCOeval(truth, truth.loadRes(boxes), "bbox")
            scored.evaluate()
            scored.accumulate()
            scored.summarize()
        return float(scored.stats[0])

    assert precision(0) == pytest.approx(1) and precision(1000) == 0


# -- planning ---------------------------------------------------------------------------------------------------------
def test_planning_counts_the_images_that_opening_returns(fake: Path, tmp_path: Path) -> None:
    parts = {"train_images": 4, "val_images": 2}
    configs = [data.model_copy(update=update) for data in (FULL, MINI, SCENES) for update in ({}, parts)]
    for data in configs:
        for split in ("train", "val"):
            found = open_split(data, split, fake, tmp_path / "drawn")  # type: ignore[arg-type]
            assert len(found.annotations["images"]) == expected_images(data, split), data  # type: ignore[arg-type]
    counts = [expected_images(data, "train") for data in configs]
    assert counts == [6, 4, 6, 4, 12, 4]


def test_planning_knows_the_official_numbers_without_data() -> None:
    sets = [DetectionDataConfig(name=name) for name in ("coco", "coco_mini", "coco_scenes")]
    assert [expected_images(data, "train") for data in sets] == [COCO_IMAGES, 343, 400]
    assert [expected_images(data, "val") for data in sets] == [5000, 206, 200]


def test_a_wrong_version_and_an_unknown_name_are_errors() -> None:
    assert FULL.version == "2017" and DetectionDataConfig().name == "coco"
    with pytest.raises(ValidationError, match="coco is declared at version '2017', the config says '2014'"):
        DetectionDataConfig(version="2014")
    with pytest.raises(ValidationError, match=r"coco_mini.*'1'.*'2017'"):
        DetectionDataConfig(name="coco_mini", version="2017")
    with pytest.raises(ValidationError, match="unknown detection data set 'voc'; valid: coco, coco_mini, coco_scenes"):
        DetectionDataConfig.model_validate({"name": "voc"})


def test_the_solver_gives_the_papers_schedule_for_batch_8_and_detectron2s_for_16() -> None:
    paper, d2 = Solver(), Solver(batch_size=16)
    assert paper.batch_size == 8 and paper.iterations(118_287) == 180_000 and paper.steps(118_287) == (120_000, 160_000)
    assert paper.warmup_iterations(118_287) == 1000 and paper.base_lr == 0.01
    assert d2.iterations(118_287) == 90_000 and d2.steps(118_287) == (60_000, 80_000) and d2.base_lr == 0.02


def test_a_schedule_counts_passes_and_a_short_one_warms_up_for_a_tenth() -> None:
    solver = Solver(schedule=0.5)
    assert solver.iterations(118_287) == 90_000 and solver.iterations(343) == 261  # 6.09 passes over 343 by 8
    assert solver.warmup_iterations(343) == 26
    assert Solver(schedule=0.001).iterations(10) == 1 and Solver(schedule=0.001).warmup_iterations(10) == 0


# -- the command line -------------------------------------------------------------------------------------------------
def test_check_prints_images_boxes_categories_people_and_fingerprints(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, evidence in ((MINI, ", annotations verified against SHA256SUMS"), (FULL, "")):
        assert main(["check", data.name, "--root", str(fake)]) == 0
        head, *lines = capsys.readouterr().out.splitlines()
        assert head == f"{data.name} {data.version}: complete (the expected numbers of photographs{evidence})"
        boxes = "boxes (1 crowds not counted) of 3 categories"
        assert lines == [
            f"train  6 images, 18 {boxes}, 6 of person, fingerprint {opened(data, 'train', fake).fingerprint}",
            f"val    3 images, 9 {boxes}, 3 of person, fingerprint {opened(data, 'val', fake).fingerprint}",
        ]


def test_check_counts_the_boxes_of_scenes_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resize(monkeypatch, "coco_scenes", {"train": 9, "val": 4})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["check", "coco_scenes", "--root", str(tmp_path)]) == 0
    head, train, val = capsys.readouterr().out.splitlines()
    assert head == "coco_scenes 1: complete (drawn when needed, no files)"
    for line, split, count in ((train, "train", 9), (val, "val", 4)):
        boxes = sum(len(scenes.scene(index, split, 128)[2]) for index in range(count))
        assert line.split("  ")[0].strip() == split and f"{count} images, {boxes} boxes of 10 categories, f" in line
    assert list(tmp_path.iterdir()) == []


def test_check_all_has_a_line_for_every_detection_set(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fake / "coco" / coco.SUMS).unlink()
    assert main(["check", "all", "--root", str(fake)]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines)[-3:] == ["coco", "coco_mini", "coco_scenes"] and len(lines) > 3
    assert ["  ok (" in line for line in list(lines.values())[-3:]] == [True, False, True]
    assert f"looked in {fake}/coco/{coco.SUMS}" in lines["coco_mini"]
    main(["check", "all", "--subset", "1percent", "--root", str(fake)])  # only those with subsets
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(lines)[:-3]


def test_an_error_on_the_command_line_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("check", "coco"): (1, f"looked in {tmp_path}/coco/train2017"),
        ("check", "coco_mini"): (1, "--scale smoke"),
        ("get", "coco"): (2, "cocodataset.org"),
        ("get", "coco_mini"): (2, "nobody publishes this part of COCO"),
        ("get", "coco_scenes"): (2, "drawn when they are needed"),
        ("check", "coco", "--subset", "1percent"): (2, "coco has no subset 1percent"),
        ("check", "coco_scenes", "--subset", "10percent"): (2, "coco_scenes has no subset 10percent"),
        ("check", "coco_scens"): (2, "cifar100, coco, coco_mini, coco_scenes, imagenet100"),
        ("get", "voc"): (2, "unknown data set 'voc'; valid: cifar10, cifar100, imagenette"),
    }
    for arguments, (status, expected) in cases.items():
        assert main([*arguments, "--root", str(tmp_path)]) == status, arguments
        output = capsys.readouterr()
        assert expected in output.err and output.err.count("\n") == 1 and not output.out, arguments
    assert list(tmp_path.iterdir()) == []
