"""Folders of images: the catalogue with its checks and cache, the canvases, and the loader."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jigclu.config import ConfigError, DataConfig
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.data.catalog import catalogue, check
from jigclu.data.loader import Batch, DataError, Unreadable, batches
from jigclu.data.sources.folder_index import scan
from jigclu.data.sources.folders import FolderSource, decode

ROOT = Path(os.environ.get("JIGCLU_DATA") or "data").resolve()
needs_imagenette = pytest.mark.skipif(not (ROOT / "imagenette").is_dir(), reason="no Imagenette; set JIGCLU_DATA")
IMAGENETTE = DataConfig(name="imagenette", canvas=128)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A root whose imagenette is links to the real files; the first train class is a real folder in reverse order."""
    for split in ("train", "val"):
        for wnid in sorted(os.listdir(ROOT / "imagenette" / split)):
            own, real = tmp_path / "imagenette" / split / wnid, ROOT / "imagenette" / split / wnid
            own.parent.mkdir(parents=True, exist_ok=True)
            if (split, wnid) != ("train", "n01440764"):
                own.symlink_to(real)
                continue
            own.mkdir()
            for name in sorted(os.listdir(real), reverse=True):
                (own / name).symlink_to(real / name)
    return tmp_path


def photos(folder: Path, count: int, broken: tuple[int, ...] = ()) -> CanvasDataset:
    """`count` tiny JPEGs, those in `broken` truncated. Image i has one grey level, i % 250."""
    names = [f"c{i % 2}/{i:05}.jpg" for i in range(count)]
    for label in ("c0", "c1"):
        (folder / label).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (8, 6), (i % 250,) * 3).save(folder / name)
        if i in broken:
            (folder / name).write_bytes((folder / name).read_bytes()[:200])
    labels, sizes = np.arange(count) % 2, np.zeros(count, np.int64)
    return CanvasDataset(FolderSource(["c0", "c1"], np.array(names), labels, folder, sizes), 8)


def read(dataset: CanvasDataset, groups: list[list[int]], workers: int, substitute: bool = True) -> list[Batch]:
    return list(batches(dataset, groups, workers, Unreadable(), substitute))


def message(data: DataConfig, root: Path) -> str:
    """The one line that check() raises."""
    with pytest.raises(ConfigError) as error:
        check(data, root)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- the catalogue ----------------------------------------------------------------------------------------------------
@needs_imagenette
def test_imagenette_has_the_official_split() -> None:
    for split, count in (("train", 9469), ("val", 3925)):
        data = open_dataset(IMAGENETTE, split, ROOT)  # type: ignore[arg-type]
        assert len(data) == count and len(data.classes) == 10 and data.classes == sorted(data.classes)
        assert [data.classes[label] for label in data.labels] == [path.split("/")[0] for path in data.paths]


@needs_imagenette
def test_a_part_is_balanced_and_does_not_depend_on_file_order(linked: Path) -> None:
    part = IMAGENETTE.model_copy(update={"train_images": 25})
    once, elsewhere = catalogue(part, "train", ROOT), catalogue(part, "train", linked)
    assert np.bincount(once.labels).tolist() == [3] * 5 + [2] * 5
    assert once.paths.tolist() == elsewhere.paths.tolist() and once.fingerprint == elsewhere.fingerprint
    more = catalogue(part.model_copy(update={"train_images": 100}), "train", ROOT)
    assert set(once.paths) < set(more.paths) and more.fingerprint != once.fingerprint


@needs_imagenette
def test_asking_for_more_images_than_there_are_names_the_numbers() -> None:
    error = message(IMAGENETTE.model_copy(update={"val_images": 3900}), ROOT)
    assert "val_images=3900" in error and "390 images" in error and "387" in error and "3925" in error


@needs_imagenette
def test_the_second_scan_comes_from_the_cache(own_cache: Path) -> None:
    folder = ROOT / "imagenette" / "val"
    first = scan(folder)
    assert scan(folder) == first
    (cache,) = own_cache.iterdir()
    values = json.loads(cache.read_bytes())
    values["n01440764"][3][1] += 1  # a size that only the cache can return
    cache.write_text(json.dumps(values))
    assert scan(folder)["n01440764"][1][1] == first["n01440764"][1][1] + 1
    cache.write_text("torn {")
    assert scan(folder) == first


def test_a_changed_class_folder_is_scanned_again(tmp_path: Path) -> None:
    photos(tmp_path / "set", 4)
    for label in ("c0", "c1"):
        os.utime(tmp_path / "set" / label, (1e9, 1e9))
    before = scan(tmp_path / "set")
    (tmp_path / "set" / "c0" / "new.JPEG").write_bytes(b"12345")
    (tmp_path / "set" / "c0" / "notes.txt").write_text("not an image")
    after = scan(tmp_path / "set")
    assert after["c0"] == [*before["c0"], ("new.JPEG", 5)] and after["c1"] == before["c1"]
    (tmp_path / "set" / "c0" / "newer.JPEG").write_bytes(b"1")  # perhaps within one tick of the file system's clock
    assert len(scan(tmp_path / "set")["c0"]) == 4


def test_an_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "set", 4)
    monkeypatch.setenv("JIGCLU_CACHE", "/dev/null/cache")
    assert [len(files) for files in scan(tmp_path / "set").values()] == [2, 2]


# -- is it complete ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["imagenette", "imagenet100", "imagenet1k"])
def test_a_missing_data_set_says_where_it_looked_and_how_to_get_it(name: str, tmp_path: Path) -> None:
    error = message(DataConfig(name=name), tmp_path)
    assert name in error and str(tmp_path) in error and "no such" in error
    assert "set JIGCLU_DATA to the data root" in error and "put " in error and "<data root>/" in error


@needs_imagenette
def test_a_complete_set_passes(linked: Path) -> None:
    check(IMAGENETTE, linked)
    check(DataConfig(name="scenes"), linked)


@needs_imagenette
def test_an_incomplete_set_is_an_error(linked: Path) -> None:
    own = linked / "imagenette" / "train" / "n01440764"
    files = sorted(own.iterdir())
    files[0].unlink()
    error = message(IMAGENETTE, linked)
    assert "9468" in error and "9469" in error and str(own.parent) in error
    with pytest.raises(ConfigError, match="9468 images, not 9469"):
        open_dataset(IMAGENETTE, "train", linked)
    for file in files[1:]:
        file.unlink()
    assert "class folder n01440764 is empty" in message(IMAGENETTE, linked)
    own.rmdir()
    assert "different class folders: only val has n01440764;" in message(IMAGENETTE, linked)


def test_the_check_needs_no_torch() -> None:
    code = "import sys, jigclu.data.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- canvases ---------------------------------------------------------------------------------------------------------
@needs_imagenette
def test_a_canvas_of_the_images_size_equals_pils_decoding() -> None:
    data = open_dataset(IMAGENETTE, "val", ROOT)
    for i in range(0, len(data), 400):
        sample = data[i]
        with Image.open(ROOT / "imagenette" / "val" / data.paths[i]) as image:
            expected = np.array(image.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(sample.canvas.numpy(), expected)
        assert sample[1:] == (128, 128, data.labels[i], i, True)


def test_a_large_image_is_scaled_into_the_top_left_and_a_small_one_keeps_its_size(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(200), np.arange(301))[..., None] * np.array([0.5, 0.3, 0.1])
    large, small = Image.fromarray(ramp.astype(np.uint8)), Image.fromarray(ramp[:30, :40].astype(np.uint8))
    large.save(tmp_path / "a.png")
    large.save(tmp_path / "b.jpg", quality=95)
    small.convert("L").save(tmp_path / "c.png")
    names = np.array(["a.png", "b.jpg", "c.png"])
    nothing = np.zeros(3, np.int64)
    data = CanvasDataset(FolderSource(["x"], names, nothing, tmp_path, nothing), 128)
    expected = np.array(large.resize((128, 85), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    for i, tolerance in ((0, 0), (1, 3)):  # the JPEG is decoded at half size first
        assert data[i][1:3] == (85, 128) and not data[i].canvas[:, 85:].any()
        error = np.abs(data[i].canvas[:, :85].numpy().astype(int) - expected)
        assert error.max() <= tolerance * 4 and error.mean() <= tolerance
    assert data[2][1:3] == (30, 40) and not data[2].canvas[:, :, 40:].any()
    np.testing.assert_array_equal(data[2].canvas[0, :30, :40], np.array(small.convert("L")))
    assert decode(tmp_path / "b.jpg", 75).shape == (3, 50, 75)


def test_an_unreadable_file_gives_an_empty_canvas(tmp_path: Path) -> None:
    sample = photos(tmp_path, 4, broken=(2,))[2]
    assert not sample.readable and not sample.canvas.any() and sample[1:5] == (8, 8, 0, 2)


# -- the loader -------------------------------------------------------------------------------------------------------
def test_batches_come_in_order_whatever_the_worker_count(tmp_path: Path) -> None:
    data = photos(tmp_path, 40)
    groups = [[5, 3, 39], [0], [7, 8, 9, 7], [1, 2]]
    state = torch.get_rng_state()
    for workers in (0, 2):
        found = read(data, groups, workers)
        assert [batch.indices.tolist() for batch in found] == groups
        assert [batch.canvas[:, 0, 0, 0].tolist() for batch in found] == groups  # grey level i is image i
        assert [batch.labels.tolist() for batch in found] == [[i % 2 for i in group] for group in groups]
        assert all(size == [6, 8] for batch in found for size in batch.sizes.tolist())
    assert torch.equal(state, torch.get_rng_state())


def test_a_substitute_keeps_the_batch_size_for_every_worker_count(tmp_path: Path) -> None:
    data = photos(tmp_path, 3000, broken=(10, 11, 2999))
    for workers in (0, 2):
        found = read(data, [[9, 10, 20], [11, 2999], [10]], workers)
        assert [batch.indices.tolist() for batch in found] == [[9, 12, 20], [12, 0], [12]]
        assert [batch.canvas[:, 0, 0, 0].tolist() for batch in found] == [[9, 12, 20], [12, 0], [12]]
        assert [batch.labels.tolist() for batch in found] == [[1, 0, 0], [0, 0], [0]]


def test_evaluation_leaves_unreadable_images_out(tmp_path: Path) -> None:
    data = photos(tmp_path, 2000, broken=(1, 2))
    for workers in (0, 2):
        found = read(data, [[0, 1, 3], [1, 2], [2, 4]], workers, substitute=False)
        assert [batch.indices.tolist() for batch in found] == [[0, 3], [], [4]]
        assert found[1].canvas.shape == (0, 3, 8, 8) and found[1].sizes.shape == (0, 2)


def test_unreadable_images_are_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, unreadable = photos(tmp_path, 2000, broken=(4, 5)), Unreadable()
    with caplog.at_level(logging.WARNING, logger="jigclu"):
        for _ in range(2):
            assert len(list(batches(data, [[4], [6], [5]], 2, unreadable, True))) == 3
    assert len(unreadable) == 2 and [data.paths[i] in caplog.text for i in (4, 5, 6)] == [True, True, False]
    assert len(caplog.records) == 2


@pytest.mark.parametrize("substitute", [True, False])
def test_the_run_stops_above_one_unreadable_image_in_a_thousand(tmp_path: Path, substitute: bool) -> None:
    data = photos(tmp_path, 1000, broken=(4, 8))
    with pytest.raises(DataError, match=r"^2 of 1000 images are unreadable .* c0/00004.jpg$"):
        read(data, [[3, 4], [5], [8]], 0, substitute)


@needs_imagenette
def test_a_corrupt_photograph_is_skipped(linked: Path) -> None:
    data = open_dataset(IMAGENETTE, "train", linked)
    victim = linked / "imagenette" / "train" / data.paths[7]
    half = victim.read_bytes()[: victim.stat().st_size // 2]
    victim.unlink()
    victim.write_bytes(half)
    (batch,), (left,) = (read(data, [[6, 7, 8]], 0, substitute) for substitute in (True, False))
    assert batch.indices.tolist() == [6, 8, 8] and left.indices.tolist() == [6, 8]


def test_workers_ignore_the_signals_that_slurm_sends_to_every_process(tmp_path: Path) -> None:
    groups = [[i] for i in range(40)]
    stream = batches(photos(tmp_path, 40), groups, 2, Unreadable(), True)
    first = [next(stream).indices.tolist() for _ in range(2)]  # one from each worker: both are running
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            os.kill(worker.pid or 0, number)
    assert first + [batch.indices.tolist() for batch in stream] == groups


def test_an_uncaught_error_ends_the_process_even_though_workers_ignore_sigterm() -> None:
    code = (
        "from jigclu.config import DataConfig\n"
        "from jigclu.data.canvases import open_dataset\n"
        "from jigclu.data.loader import Unreadable, batches\n"
        "data = open_dataset(DataConfig(name='scenes', canvas=16), 'train')\n"
        "def train():\n"
        "    stream = batches(data, [[i] for i in range(500)], 2, Unreadable(), True)\n"
        "    for batch in stream:\n"
        "        raise RuntimeError('on purpose')\n"
        "train()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.rstrip().endswith("RuntimeError: on purpose")
