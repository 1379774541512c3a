"""CIFAR: exact pixels, parts by rule, no pickle opened before it is verified; and `python -m jigclu.data`."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_cifar import pickles, seal, small_cifar
from PIL import Image

from jigclu.config import DATASETS, ConfigError, DataConfig
from jigclu.config.datasets import CifarFiles
from jigclu.data.__main__ import main
from jigclu.data.canvases import open_dataset
from jigclu.data.catalog import catalogue, check, expected_images
from jigclu.data.download import DownloadError, get
from jigclu.data.loader import Unreadable, batches
from jigclu.data.sources.cifar import SUMS, CifarCollection

TEN = DataConfig(name="cifar10", canvas=32)
HUNDRED = DataConfig(name="cifar100", canvas=32)


@pytest.fixture(scope="module")
def cifar(data_root: Path) -> Path:
    if not all((data_root / DATASETS[name].folder).is_dir() for name in ("cifar10", "cifar100")):
        pytest.skip(f"no CIFAR at {data_root}")
    return data_root


def refusal(root: Path, data: DataConfig = TEN) -> str:
    """The one line that both the check and reading raise."""
    with pytest.raises(ConfigError) as checked:
        check(data, root)
    with pytest.raises(ConfigError) as read:
        catalogue(data, "train", root)
    assert str(checked.value) == str(read.value) and "\n" not in str(read.value)
    return str(read.value)


# -- what is read -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "folder", "files", "labels", "meta", "names"),
    [
        (TEN, "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "labels", "batches.meta", "label_names"),
        (HUNDRED, "cifar-100-python", ["train"], "fine_labels", "meta", "fine_label_names"),
    ],
)
def test_pixels_and_labels_equal_the_pickles(
    cifar: Path, data: DataConfig, folder: str, files: list[str], labels: str, meta: str, names: str
) -> None:
    batches_ = [pickle.loads((cifar / folder / name).read_bytes(), encoding="latin1") for name in files]
    pixels = np.concatenate([entry["data"] for entry in batches_]).reshape(-1, 3, 32, 32)
    found = open_dataset(data, "train", cifar)
    assert len(found) == len(pixels) == 10_000 and found.paths[123] == "train/123"
    assert found.labels.tolist() == [label for entry in batches_ for label in entry[labels]]
    assert found.classes == pickle.loads((cifar / folder / meta).read_bytes(), encoding="latin1")[names]
    for i in range(0, len(found), 997):
        np.testing.assert_array_equal(found[i].canvas.numpy(), pixels[i])
        assert found[i][1:] == (32, 32, found.labels[i], i, True)
    val = open_dataset(data, "val", cifar)
    assert len(val) == 2000 and len(set(val.labels)) == len(found.classes) and val.fingerprint != found.fingerprint


def test_the_recorded_md5s_equal_torchvisions() -> None:
    from torchvision import datasets

    for name, official in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        files = pickles(name)
        assert files.reader == official.__name__ and DATASETS[name].folder == official.base_folder
        assert [[*item] for item in files.train.items()] == official.train_list
        assert [[*item] for item in files.test.items()] == official.test_list
        assert files.meta == {official.meta["filename"]: official.meta["md5"]}


def test_a_smaller_canvas_scales_down_and_a_larger_one_is_padded_with_black(tmp_path: Path) -> None:
    small_cifar(tmp_path)
    native, small, large = (
        open_dataset(TEN.model_copy(update={"canvas": side}), "val", tmp_path)[3].canvas for side in (32, 16, 40)
    )
    picture = Image.fromarray(native.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(
        small.permute(1, 2, 0).numpy(), np.array(picture.resize((16, 16), Image.Resampling.BILINEAR))
    )
    assert torch.equal(large[:, :32, :32], native) and not large[:, 32:].any() and not large[:, :, 32:].any()


def test_workers_read_the_same_images(tmp_path: Path) -> None:
    small_cifar(tmp_path)
    data, groups = open_dataset(TEN, "train", tmp_path), [[5, 3, 99], [0], [7, 8]]
    data.extents = None  # otherwise canvases of this side are copied without workers (test_pack.py)
    here, elsewhere = (list(batches(data, groups, workers, Unreadable(), True)) for workers in (0, 2))
    assert all(torch.equal(one.canvas, other.canvas) for one, other in zip(here, elsewhere, strict=True))


def test_a_part_is_balanced_and_contains_every_smaller_one(cifar: Path) -> None:
    parts = [
        catalogue(HUNDRED.model_copy(update={"train_images": count}), "train", cifar) for count in (250, 1000, None)
    ]
    assert [np.bincount(part.labels).tolist() for part in parts] == [[3] * 50 + [2] * 50, [10] * 100, [100] * 100]
    assert set(parts[0].paths) < set(parts[1].paths) < set(parts[2].paths)
    assert len({part.fingerprint for part in parts}) == 3
    positions = {path: position for position, path in enumerate(parts[2].paths.tolist())}
    for i, path in enumerate(parts[0].paths.tolist()):
        assert parts[0].labels[i] == parts[2].labels[positions[path]]
        assert (parts[0].pixels(i, 32) == parts[2].pixels(positions[path], 32)).all()
    with pytest.raises(
        ConfigError, match=r"data.val_images=2100: cifar100 would need 21 images .* has 20 \(2000 in all"
    ):
        catalogue(HUNDRED.model_copy(update={"val_images": 2100}), "val", cifar)


# -- is it complete ---------------------------------------------------------------------------------------------------
class Bomb:
    """A pickle that writes a file when it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_an_altered_pickle_is_rejected_before_it_is_opened(tmp_path: Path, name: str, sealed: bool) -> None:
    """With the folder's own digests and with the official ones; the marker shows that opening it has an effect."""
    folder, marker = small_cifar(tmp_path), tmp_path / "opened"
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    if not sealed:
        (folder / SUMS).unlink()
    error = refusal(tmp_path)
    assert "is altered" in error and "jigclu data get cifar10" in error and str(folder) in error
    assert (f"{name} is altered" in error and SUMS in error) == sealed
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())
    assert marker.exists()


def test_a_single_altered_byte_is_detected(tmp_path: Path) -> None:
    folder = small_cifar(tmp_path)
    check(TEN, tmp_path)
    before = catalogue(TEN, "train", tmp_path).fingerprint
    content = bytearray((folder / "data_batch_5").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "data_batch_5").write_bytes(content)
    assert "data_batch_5 is altered" in refusal(tmp_path)
    seal(folder)
    assert catalogue(TEN, "train", tmp_path).fingerprint != before


def test_missing_files_are_a_one_line_error(tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(tmp_path) and "cifar-10-batches-py" in refusal(tmp_path)
    assert "get cifar100" in refusal(tmp_path, HUNDRED)
    folder = small_cifar(tmp_path)
    (folder / "test_batch").unlink()
    assert "there is no file test_batch" in refusal(tmp_path)
    lines = (folder / SUMS).read_text().splitlines()
    (folder / SUMS).write_text("\n".join(line for line in lines if "test_batch" not in line))
    assert f"{SUMS} does not list test_batch" in refusal(tmp_path)


def test_official_files_must_contain_the_official_number_of_images(tmp_path: Path) -> None:
    """The small set's md5s are declared official, so only the number of images is wrong."""
    import hashlib

    folder = small_cifar(tmp_path)
    (folder / SUMS).unlink()
    ten = pickles("cifar10")
    train, test, meta = (
        {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in part}
        for part in (ten.train, ten.test, ten.meta)
    )
    files = CifarFiles(ten.reader, train, test, meta)
    collection = CifarCollection(replace(DATASETS["cifar10"], cifar=files))
    collection.check(TEN, tmp_path)
    assert collection.verified(TEN, tmp_path) == "files verified against the official md5s"
    with pytest.raises(ConfigError, match="100 train images, not 50000"):
        collection.open(TEN, "train", tmp_path)


# -- the command line -------------------------------------------------------------------------------------------------
def test_check_prints_the_contents_of_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_cifar(tmp_path)
    assert main(["check", "cifar10", "--root", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    fingerprint = catalogue(TEN, "train", tmp_path).fingerprint
    assert f"100 images, 10 classes of 10 to 10, fingerprint {fingerprint}" in output
    assert "20 images, 10 classes of 2 to 2" in output and f"verified against {SUMS}" in output
    assert main(["check", "cifar10", "--subset", "10percent", "--root", str(tmp_path)]) == 0
    assert "10 images, 10 classes of 1 to 1" in capsys.readouterr().out


def test_check_all_prints_a_line_for_every_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_cifar(tmp_path)
    assert main(["check", "all", "--root", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "scenes", "textures", "imagenette", "imagenette_full", "imagenet100", "imagenet1k", "cifar10", "cifar100",
        "coco", "coco_mini", "coco_scenes",
    ]  # fmt: skip
    assert ["  ok (" in line for line in lines] == [True, True, *[False] * 4, True, False, False, False, True]


def test_a_wrong_name_or_a_missing_set_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    cases = {
        ("check", "cifra10"): (2, "did you mean cifar10?"),
        ("get", "imagenete"): (2, "did you mean imagenette?"),
        ("check", "cifar10", "--subset", "1precent"): (2, "did you mean 1percent?"),
        ("get", "imagenet1k"): (2, "image-net.org"),
        ("get", "scenes"): (2, "drawn when they are read"),
        ("check", "cifar10"): (1, "jigclu data get cifar10"),
    }
    for arguments, (status, expected) in cases.items():
        assert main([*arguments, *root]) == status
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1, arguments


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from jigclu.data.__main__ import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "check NAME|all" in done.stdout, done.stderr


def test_a_download_is_checked_and_moved_into_place(tmp_path: Path) -> None:
    folder, root = small_cifar(tmp_path / "server"), tmp_path / "new" / "root"

    def fetch(aside: Path) -> None:
        shutil.copytree(folder, aside / folder.name)

    assert "verified" in get(TEN, root, fetch)
    assert os.listdir(root) == [folder.name] and len(catalogue(TEN, "train", root).paths) == 100
    assert "already there" in get(TEN, root)
    (root / folder.name / "test_batch").unlink()
    with pytest.raises(DownloadError, match="move it away first"):
        get(TEN, root, fetch)
    (folder / "test_batch").write_bytes(b"cut short")
    with pytest.raises(DownloadError, match=r"test_batch is altered.*nothing was kept"):
        get(TEN, tmp_path / "other", fetch)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenette"])
def test_a_failed_download_is_one_line_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for proxy in ("http_proxy", "https_proxy"):  # no server listens there
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of the moment it was created
    assert main(["get", name, "--root", str(tmp_path / "root")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{name} could not be downloaded" in error and "nothing was kept" in error
    assert not (tmp_path / "root").exists()


def test_planning_counts_without_data() -> None:
    whole = {name: DataConfig.model_validate({"name": name}) for name in ("cifar10", "imagenet1k", "scenes")}
    assert [expected_images(data, "train") for data in whole.values()] == [50_000, 1_281_167, 2000]
    tenth = [expected_images(data.model_copy(update={"subset": "10percent"}), "train") for data in whole.values()]
    assert tenth == [5000, 128_116, 200]
    few = whole["imagenet1k"].model_copy(update={"subset": "1percent", "train_images": 100})
    assert expected_images(few, "train") == 100 and expected_images(few, "val") == 50_000
