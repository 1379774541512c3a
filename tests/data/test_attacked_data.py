"""Data that is wrong in ways that would give a wrong number, stop the program or run code: one line that names it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.packs import COUNTS, TINY, folders, packed, register
from helpers.small_cifar import seal, small_cifar
from PIL import Image

from jigclu.config import ConfigError, DataConfig
from jigclu.data import catalog
from jigclu.data.canvases import open_dataset
from jigclu.data.sources.coco_annotations import checked, parse
from jigclu.data.sources.decoding import decode
from jigclu.data.sources.folder_index import require_separate
from jigclu.data.sources.subsets import IncompleteDatasetError, read_list

CIFAR = DataConfig(name="cifar10", canvas=32)


def refusal(use: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as error:
        use()
    assert "\n" not in str(error.value)
    return str(error.value)


# -- folders ----------------------------------------------------------------------------------------------------------
def test_the_same_images_in_train_and_val_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, {"train": 20, "val": 20})
    root = folders(tmp_path / "root", {"val": 20})
    shutil.copytree(root / "imagenette/val", root / "imagenette/train")
    assert "20 of 20 val images are in train too" in refusal(lambda: catalog.check(TINY, root))
    shutil.rmtree(root / "imagenette/train")
    (root / "imagenette/train").symlink_to("val")
    assert "train and val are one folder, by a link" in refusal(lambda: open_dataset(TINY, "train", root))


def test_a_class_that_is_a_copy_or_a_link_of_another_is_named(tiny: Path) -> None:
    train = tiny / "imagenette/train"
    shutil.rmtree(train / "n3")
    shutil.copytree(train / "n4", train / "n3")
    assert "class folders n3 and n4 have the same images" in refusal(lambda: open_dataset(TINY, "train", tiny))
    shutil.rmtree(train / "n3")
    for extra in sorted((train / "n4").iterdir())[2:]:  # the set keeps its number of images
        shutil.copy(extra, extra.with_name(f"more-{extra.name}"))
    (train / "n3").symlink_to("../val/n3")
    kept = len(list((train / "n3").iterdir()))
    assert f"{kept} of 20 val images are in train too" in refusal(lambda: catalog.check(TINY, tiny))


def test_an_image_that_becomes_a_pipe_is_unreadable_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.JPEG")
    with pytest.raises(ValueError, match="not a regular file"):
        decode(tmp_path / "x.JPEG", 24)


def test_an_image_replaced_during_a_job_is_named(tiny: Path) -> None:
    data = open_dataset(TINY, "train", tiny)
    Image.new("RGB", (50, 50)).save(tiny / "imagenette/train" / str(data.paths[0]))
    assert not data[0].readable and data.fault(0).startswith("replaced after the data set was listed: ")


def test_a_job_keeps_its_images_if_the_link_to_the_data_root_changes(tiny: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny)
    data = open_dataset(TINY, "train", link)
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    assert data[0].readable


@pytest.mark.parametrize("name", ["n3\nx", "n3\u2028x"])
def test_a_line_break_in_a_name_is_refused_in_one_line(name: str, tiny: Path) -> None:
    for split in COUNTS:
        (tiny / "imagenette" / split / "n3").rename(tiny / "imagenette" / split / name)
    assert "has a line break in it" in refusal(lambda: catalog.check(TINY, tiny))


# -- lists ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"n0/a\n\xff\xfe\n", "it is not UTF-8 text"),
        (b" \n", "it names nothing"),
        (b"n0/a\nn0/b\nn0/a\n", "it names n0/a twice"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(text: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(text)
    with pytest.raises(IncompleteDatasetError) as error:
        read_list(path, hashlib.sha256(text).hexdigest())
    assert str(error.value) == expected and error.value.path == path


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbfn0/a\r\nn0/b\r\n"
    (tmp_path / "list.txt").write_bytes(text)
    assert read_list(tmp_path / "list.txt", hashlib.sha256(text).hexdigest()) == ["n0/a", "n0/b"]


# -- packs ------------------------------------------------------------------------------------------------------------
def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "pack.json").read_text())
    change(values)
    (folder / "pack.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("fingerprint", "0" * 16, "the fingerprint of train.index.npz is"),
        ("unreadable", 7, "0 images are unreadable, not 7 as pack.json says"),
    ],
)
def test_a_pack_whose_facts_do_not_fit_its_index_is_damaged(key: str, value: Any, expected: str, tiny: Path) -> None:
    folder = packed(TINY, tiny)
    edited(folder, lambda values: values["splits"]["train"].update({key: value}))
    message = refusal(lambda: open_dataset(TINY, "train", tiny))
    assert "is damaged" in message and expected in message


def test_a_pack_whose_array_has_another_shape_is_damaged_even_if_its_digest_fits(tiny: Path) -> None:
    folder = packed(TINY, tiny)
    np.save(folder / "train.npy", np.zeros((3, 3, TINY.canvas, TINY.canvas), np.uint8))
    content = (folder / "train.npy").read_bytes()
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edited(folder, lambda values: values["splits"]["train"]["files"].update({"train.npy": facts}))
    assert "train.npy is uint8 of shape (3, 3, " in refusal(lambda: open_dataset(TINY, "train", tiny))


def test_a_pack_of_another_number_of_images_is_not_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(TINY, tiny)
    register(monkeypatch, {**COUNTS, "val": COUNTS["val"] + 10})
    message = refusal(lambda: open_dataset(TINY, "val", tiny))
    assert "does not fit the data set: val: 20 images, not 30; make it again with" in message


# -- CIFAR ------------------------------------------------------------------------------------------------------------
def labels(change: Callable[[list[int]], list[Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {**values, "labels": change(values["labels"])}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (labels(lambda some: [10, *some[1:]]), "a label is 10, and must be a whole number from 0 to 9"),
        (labels(lambda some: [-1, *some[1:]]), "a label is -1"),
        (labels(lambda some: [0.5, *some[1:]]), "a label is 0.5"),
        (labels(lambda some: some[:-1]), "labels must be a list of 20 numbers"),
        (lambda values: {**values, "data": values["data"] / 255.0}, "of type uint8"),
        (lambda values: {**values, "data": values["data"].astype(np.int64)}, "of type uint8"),
        (lambda values: {**values, "data": values["data"][:, 1:]}, "rows of 3072"),
        (lambda values: {"labels": values["labels"]}, "data must be"),
        (lambda values: [1], "holds a list"),
    ],
)
def test_batches_of_other_content_are_refused(change: Callable[[Any], Any], expected: str, tmp_path: Path) -> None:
    folder = small_cifar(tmp_path)
    batch = folder / "data_batch_2"
    batch.write_bytes(pickle.dumps(change(pickle.loads(batch.read_bytes()))))
    seal(folder)
    message = refusal(lambda: open_dataset(CIFAR, "train", tmp_path))
    assert "data_batch_2: " in message and expected in message


class Code:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_code_is_refused_and_not_run_even_if_its_digest_fits(tmp_path: Path) -> None:
    folder = small_cifar(tmp_path)
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Code(tmp_path / "ran"), "labels": []}))
    seal(folder)
    assert "data_batch_2: it is not one of CIFAR's files (it would call posix.mkdir)" in refusal(
        lambda: open_dataset(CIFAR, "train", tmp_path)
    )
    assert not (tmp_path / "ran").exists()


def test_a_batch_that_is_a_copy_of_another_is_refused(tmp_path: Path) -> None:
    folder = small_cifar(tmp_path)
    shutil.copy(folder / "test_batch", folder / "data_batch_4")
    seal(folder)
    assert "data_batch_4 and test_batch are the same file" in refusal(lambda: open_dataset(CIFAR, "val", tmp_path))


# -- COCO -------------------------------------------------------------------------------------------------------------
COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 50}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 20, 30], "area": 600, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cup"}],
}


@pytest.mark.parametrize(
    ("key", "change", "expected"),
    [
        ("annotations", {"iscrowd": 1}, "no box of a single object"),
        ("annotations", {"bbox": [60, 3, 20, 30]}, "is outside its image of 60 x 50 pixels"),
        ("annotations", {"bbox": [-1e6, -1e6, 2e6, 2e6]}, "is far larger than its image of 60 x 50 pixels"),
        ("annotations", {"bbox": [2, 3, 200, 30]}, "is far larger than its image"),
        ("annotations", {"bbox": [10**400, 3, 20, 30]}, "bbox must be"),
        ("annotations", {"area": 1e11}, "area must be"),
        ("annotations", {"id": 1 << 63}, "no integer"),
        ("categories", {"name": " "}, "its name must be a text"),
        ("categories", {"name": 7}, "its name must be a text"),
    ],
)
def test_what_would_be_scored_wrongly_is_named(key: str, change: dict[str, Any], expected: str) -> None:
    values = copy.deepcopy(COCO)
    checked(values, Path("x.json"))
    values[key][0].update(change)
    with pytest.raises(IncompleteDatasetError) as error:
        checked(values, Path("x.json"))
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (0, "(it holds a int, not an object)"),
        ({"images": []}, "no list of annotations"),
        ({"images": {}}, "no list of images"),
    ],
)
def test_what_is_no_annotation_file_is_named(values: Any, expected: str) -> None:
    with pytest.raises(IncompleteDatasetError) as error:
        parse(json.dumps(values).encode(), Path("x.json"))
    assert expected in str(error.value) and "Error" not in str(error.value)


def test_photographs_that_are_in_both_splits_are_named(tmp_path: Path) -> None:
    sizes = {f"{number}.jpg": 3 for number in range(4)}
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        for name in sizes:
            (tmp_path / split / name).write_bytes(b"one")
    one, other = tmp_path / "train2017", tmp_path / "val2017"
    with pytest.raises(IncompleteDatasetError, match=r"4 of 4 val images are in train too, the first is 0\.jpg"):
        require_separate(one, sizes, other, sizes)
    (other / "0.jpg").write_bytes(b"two")  # same names and sizes, other pixels
    require_separate(one, sizes, other, sizes)
