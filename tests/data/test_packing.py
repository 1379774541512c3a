"""Writing packs: complete or absent whatever happens in between; and the messages of the command."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.packs import (
    TINY,
    TINY_JPEG,
    cut,
    flip,
    from_files,
    packed,
    read,
    register,
    same,
    visible,
)
from PIL import Image

from jigclu.config import DataConfig
from jigclu.data import pack_writer
from jigclu.data.__main__ import main
from jigclu.data.canvases import open_dataset
from jigclu.data.catalog import check
from jigclu.data.sources import packed as reader
from jigclu.data.sources.folders import FolderSource


@pytest.mark.parametrize("data", [TINY, TINY_JPEG], ids=["raw", "jpeg"])
def test_any_number_of_workers_writes_the_same_bytes(
    data: DataConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pack_writer, "_SPAN_BYTES", 3 * 24 * 24 * 3
    )  # three images at a time: more spans than the queue holds
    found = []
    for workers in (0, 2):
        folder = packed(data, tiny, workers)
        found.append({name: (folder / name).read_bytes() for name in os.listdir(folder) if name != "pack.json"})
        shutil.rmtree(folder)
    assert found[0] == found[1] and len(found[0]) == 4


def test_numpy_reads_the_files(tiny: Path) -> None:
    folder = packed(TINY, tiny)
    pixels = np.load(folder / "train.npy", mmap_mode="r", allow_pickle=False)
    assert pixels.shape == (40, 3, 24, 24) and pixels.dtype == np.uint8
    jpegs = np.load(packed(TINY_JPEG, tiny) / "val.npy")
    assert jpegs.ndim == 1 and jpegs[:2].tobytes() == b"\xff\xd8"
    facts = json.loads((folder / "pack.json").read_text())
    assert facts["splits"]["train"]["fingerprint"] == from_files(TINY, "train", tiny).fingerprint
    assert facts["splits"]["val"]["images"] == 20 and facts["quality"] is facts["subsampling"] is None


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from helpers import packs
from jigclu.data.__main__ import main
from jigclu.config import DATASETS
from jigclu.data.sources.folders import FolderSource
DATASETS["imagenette"] = packs.small_spec(packs.COUNTS)
plain = FolderSource.pixels
FolderSource.pixels = lambda *given: (time.sleep(0.2), plain(*given))[1]
packs.pack_writer._SPAN_BYTES = 1
sys.exit(main(["pack", "imagenette", "--canvas", "24", "--workers", "2", "--root", {root!r}]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pack_leaves_none_and_the_next_one_cleans_up(number: signal.Signals, tiny: Path) -> None:
    code = SLOW.format(tests=str(Path(__file__).parents[1]), root=str(tiny))
    writer = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    aside = tiny / "packed" / ".imagenette-v2-128px-24px.packing"
    deadline = time.monotonic() + 60
    while not ((aside / "train.npy").exists() and (aside / "train.npy").stat().st_size > 1000):
        assert writer.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(pack_writer.PackError, match="is being written by another process"):
        pack_writer.pack(TINY, tiny, 0)
    assert (aside / "train.npy").exists() and writer.poll() is None
    writer.send_signal(number)
    error = writer.communicate(timeout=60)[1]
    if number == signal.SIGKILL:
        assert visible(tiny) == [aside.name]
    else:
        assert visible(tiny) == [] and writer.returncode == 128 + number
        assert error == ("jigclu data: interrupted; nothing was kept\n" if number == signal.SIGINT else "")
    assert not isinstance(open_dataset(TINY, "train", tiny).source, reader.PackedSource)
    while True:  # the killed process's workers end a moment later and release the lock
        try:
            packed(TINY, tiny)
            break
        except pack_writer.PackError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert visible(tiny) == ["imagenette-v2-128px-24px"]
    check(TINY, tiny)


def test_an_existing_pack_is_reported_and_a_damaged_one_is_replaced_by_force(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pack", "imagenette", "--canvas", "24", "--workers", "0", "--root", str(tiny)]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "60 images, 0.00 GB, at " in first and "jobs with data.canvas 24 read it" in first
    folder = reader.folder_of(TINY, tiny)
    inode = (folder / "train.npy").stat().st_ino
    assert main(command) == 0 and "is already packed and complete" in capsys.readouterr().out
    assert (folder / "train.npy").stat().st_ino == inode
    flip(folder / "train.npy")
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "train.npy is altered" in error and "--force" in error and error.count("\n") == 1
    assert main(["check", "imagenette", "--root", str(tiny)]) == 1
    assert main([*command, "--force"]) == 0 and visible(tiny) == [folder.name]
    assert main(["check", "imagenette", "--root", str(tiny)]) == 0


@pytest.mark.parametrize("killed", [False, True])
def test_a_pack_survives_a_replacement_that_fails_at_its_last_step(
    killed: bool, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old pack gets its name back: at once, or if the process was killed, when packing is started again."""
    folder = packed(TINY, tiny)
    inode = (folder / "train.npy").stat().st_ino
    plain = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".packing"):
            raise OSError(errno.EIO, "Input/output error")
        plain(source, target)

    if killed:
        shutil.rmtree(tiny / "imagenette")
        os.rename(folder, folder.with_name(f".{folder.name}.replaced"))
    else:
        monkeypatch.setattr(os, "rename", failing)
        with pytest.raises(pack_writer.PackError, match="Input/output error"):
            pack_writer.pack(TINY, tiny, 0, force=True)
    assert not killed or visible(tiny) != [folder.name]
    assert "is already packed and complete" in pack_writer.pack(TINY, tiny, 0)
    assert visible(tiny) == [folder.name] and (folder / "train.npy").stat().st_ino == inode


def test_an_error_of_the_disk_stops_the_packing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken image may be left out for good; one that the disk fails to read once may not."""
    plain = FolderSource.pixels

    def failing(self: FolderSource, index: int, longest: int) -> np.ndarray:
        if index == 7:
            raise OSError(errno.ESTALE, "Stale file handle")
        return plain(self, index, longest)

    monkeypatch.setattr(FolderSource, "pixels", failing)
    with pytest.raises(pack_writer.PackError, match="Stale file handle"):
        pack_writer.pack(TINY, tiny, 0)
    assert visible(tiny) == []


def test_check_lists_packs_and_detects_folders_that_changed_since(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tiny)]
    for data in (TINY_JPEG, TINY):
        packed(data, tiny)
    assert main(["check", "imagenette", *root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(";")[-1] for line in lines[3:]] == [
        " jobs with data.canvas 24 read it",
        " jobs with data.canvas 24 and data.quality 80 read it "
        "(--set pretrain.data.quality=80: different pixels, so different jobs)",
    ]
    assert all(line.startswith(f"pack   {tiny}") and ": complete, 0.00 GB" in line for line in lines[3:])
    main(["check", "all", *root])
    assert "packed: imagenette-v2-128px-24px, imagenette-v2-128px-24px-q80)" in capsys.readouterr().out
    victim = next((tiny / "imagenette" / "val" / "n3").iterdir())
    Image.new("RGB", (5, 5)).save(victim)
    os.utime(victim.parent)
    assert main(["check", "imagenette", *root]) == 1
    error = capsys.readouterr().err
    assert error.count("made from different val images than imagenette's folders now contain") == error.count("\n") == 2
    assert main(["pack", "imagenette", "--canvas", "24", *root]) == 1
    assert "made from different val images" in capsys.readouterr().err
    shutil.rmtree(tiny / "imagenette")
    assert main(["check", "imagenette", *root]) == 0
    assert "packs only, no folders" in capsys.readouterr().out
    assert main(["pack", "imagenette", "--canvas", "24", *root]) == 0
    main(["check", "all", *root])
    assert re.search(r"^imagenette +ok \(no folders, packed: ", capsys.readouterr().out, re.MULTILINE)
    cut(reader.folder_of(TINY, tiny) / "val.npy")
    main(["check", "all", *root])
    assert re.search(r"^imagenette +data set imagenette: the pack ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["cifar10"], 2, "cifar10 is not packed: it is one array in memory already; data sets that are: imagenette,"),
        (["scenes"], 2, "scenes is not packed: its images are drawn when they are read"),
        (["coco_mini"], 2, "coco_mini is not packed: the detection stage reads it"),
        (["imagenete"], 2, "did you mean imagenette?"),
        (["imagenette", "--quality", "0"], 2, "--quality must be at least 1, not 0"),
        (["imagenette", "--canvas", "0"], 2, "--canvas must be at least 1"),
        (["imagenet1k"], 1, "there is no such folder; put ILSVRC2012"),
    ],
)
def test_packing_something_else_is_a_one_line_error(
    arguments: list[str], status: int, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended: object = main(["pack", *arguments, "--root", str(tmp_path)])
    except SystemExit as end:  # of the parser
        ended = end.code
    assert ended == status
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_full_or_unwritable_disk_is_a_one_line_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil._ntuple_diskusage(0, 0, 60 * 3 * 24 * 24 - 1)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: free)
        with pytest.raises(pack_writer.PackError, match=r"has 0\.000104 GB free; the pack takes 0\.000104 GB"):
            packed(TINY, tiny)
    assert visible(tiny) == []
    shutil.rmtree(tiny / "packed")
    (tiny / "packed").write_text("not a folder")
    with pytest.raises(pack_writer.PackError, match="File exists; nothing was kept"):
        packed(TINY, tiny)


def test_unreadable_images_keep_their_index_and_too_many_stop_the_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training skips one of 1000; two are too many."""
    root, counts = tmp_path / "root", {"train": 1000, "val": 10}
    for split, count in counts.items():
        for i in range(count):
            path = root / "imagenette" / split / f"n{i % 10}" / f"{i:04}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), (i % 250,) * 3).save(path)
    register(monkeypatch, counts)
    data = DataConfig(name="imagenette", canvas=8)
    victims = [root / "imagenette" / "train" / name for name in ("n4/0014.JPEG", "n2/0332.JPEG")]
    victims[0].write_bytes(victims[0].read_bytes()[:200])
    os.utime(victims[0].parent)
    plain = [
        (read(from_files(data, "train", root), substitute, workers))
        for substitute in (True, False)
        for workers in (0, 2)
    ]
    for config in (data, data.model_copy(update={"quality": 100})):
        assert "(1 of them unreadable)" in pack_writer.pack(config, root, 0)
        dataset = open_dataset(config, "train", root)
        found = [read(dataset, substitute, workers) for substitute in (True, False) for workers in (0, 2)]
        assert all(same([b._replace(canvas=b.labels) for b in a], [c._replace(canvas=c.labels) for c in d])
                   for a, d in zip(found, plain, strict=True))  # fmt: skip
        assert config.quality or all(same(a, b) for a, b in zip(found, plain, strict=True))
        assert not dataset[int(np.flatnonzero(dataset.paths == "n4/0014.JPEG")[0])].readable
    assert "unreadable image, skipped: n4/0014.JPEG" in caplog.text
    victims[1].write_bytes(b"")
    os.utime(victims[1].parent)
    shutil.rmtree(root / "packed")
    with pytest.raises(pack_writer.PackError) as error:
        packed(data, root)
    assert f"2 of 1000 train images are unreadable (over 0.1 %), the first is {victims[1]}" in str(error.value)
    assert visible(root) == [] and "\n" not in str(error.value)
