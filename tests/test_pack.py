"""Packed data sets: the same numbers as the folders, refused unless whole, and never half there."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_cifar import small_cifar

from jigclu.config import ConfigError, DataConfig, identity, parse
from jigclu.data import datasets, packing
from jigclu.data import pack as reader
from jigclu.data.__main__ import main
from jigclu.data.catalog import COLLECTIONS, catalogue, check
from jigclu.data.datasets import CanvasDataset, open_dataset
from jigclu.data.folders import FolderCollection
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.data.source import SPLITS, Source, Split

REAL = DataConfig(name="imagenette", canvas=64)
TINY = DataConfig(name="imagenette", canvas=24)
TINY_JPEG = DataConfig(name="imagenette", canvas=24, quality=80)
COUNTS = {"train": 40, "val": 20}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JIGCLU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with an `imagenette` of a few images of many shapes, larger and smaller than the canvas."""
    monkeypatch.setitem(COLLECTIONS, "imagenette", collection(COUNTS))
    return folders(tmp_path / "root", COUNTS)


def collection(counts: dict[str, int]) -> FolderCollection:
    return replace(COLLECTIONS["imagenette"], images=counts, subset_lists="")  # type: ignore[type-var]


def folders(root: Path, counts: dict[str, int]) -> Path:
    noise = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(count):
            path = root / "imagenette" / split / f"n{i % 10}" / f"{i:04}.{'png' if i % 7 == 3 else 'JPEG'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = noise.integers(6, 60, 2)
            Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return root


def from_files(data: DataConfig, split: Split, root: Path) -> CanvasDataset:
    source = COLLECTIONS[data.name]
    assert isinstance(source, FolderCollection)
    return CanvasDataset(source.from_files(data, split, root), data.canvas)


def packed(data: DataConfig, root: Path, workers: int = 0) -> Path:
    packing.pack(data, root, workers)
    return reader.folder_of(data, root)


def read(
    data: CanvasDataset, substitute: bool = True, workers: int = 0, device: torch.device | None = None, size: int = 16
) -> list[Batch]:
    """All images, backwards, in batches."""
    order = list(range(len(data)))[::-1]
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return list(batches(data, groups, workers, Unreadable(), substitute, device))


def same(some: list[Batch], others: list[Batch]) -> bool:
    pairs = [pair for one, other in zip(some, others, strict=True) for pair in zip(one, other, strict=True)]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def refusal(data: DataConfig, root: Path) -> str:
    """The one line that planning and opening refuse with; `check` prints it and ends with 1."""
    with pytest.raises(ConfigError) as error:
        check(data, root)
    with pytest.raises(ConfigError, match=r"data set imagenette"):
        for split in SPLITS:
            open_dataset(data, split, root)
    assert "\n" not in str(error.value)
    return str(error.value)


def visible(root: Path) -> list[str]:
    """What lies in packed/ but the locks, which stay."""
    return sorted(name for name in os.listdir(root / "packed") if not name.endswith(".lock"))


# -- real photographs -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(imagenette: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with links to Imagenette and its raw pack."""
    root = tmp_path_factory.mktemp("real")
    (root / "imagenette").symlink_to(imagenette / "imagenette")
    packing.pack(REAL, root, 2)
    return root


@pytest.mark.parametrize(
    ("split", "part"),
    [
        ("train", {}),
        ("val", {}),
        ("train", {"subset": "1percent"}),
        ("train", {"subset": "10percent", "train_images": 200}),
        ("train", {"train_images": 250}),
        ("val", {"val_images": 55}),
    ],
)
def test_a_raw_pack_gives_the_folders_batches_and_fingerprint(
    split: Split, part: dict[str, object], real: Path, imagenette: Path
) -> None:
    data = REAL.model_copy(update=part)
    ours, theirs = open_dataset(data, split, real), from_files(data, split, imagenette)
    assert isinstance(ours.source, reader.RawSource) and not isinstance(theirs.source, reader.PackedSource)
    assert same(read(ours, size=256), read(theirs, size=256))
    assert ours.fingerprint == theirs.fingerprint == open_dataset(data, split, imagenette).fingerprint
    assert ours.paths.tolist() == theirs.paths.tolist() and ours.classes == theirs.classes


def test_a_pack_serves_without_the_folders(real: Path, imagenette: Path, tmp_path: Path) -> None:
    """Subsets by list too: the lists are what must be there."""
    (tmp_path / "imagenette").mkdir()
    (tmp_path / "imagenette" / "splits").symlink_to(imagenette / "imagenette" / "splits")
    (tmp_path / "packed").symlink_to(real / "packed")
    check(REAL, tmp_path)
    for split, part in (("val", {}), ("train", {"subset": "1percent"}), ("train", {"train_images": 30})):
        data = REAL.model_copy(update=part)
        assert same(read(open_dataset(data, split, tmp_path)), read(open_dataset(data, split, real)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such folder"):  # another canvas is not in the pack
        check(REAL.model_copy(update={"canvas": 65}), tmp_path)
    (tmp_path / "imagenette" / "splits").unlink()
    with pytest.raises(ConfigError, match=r"simclr_1percent.txt: there is no such file"):
        check(REAL.model_copy(update={"subset": "1percent"}), tmp_path)


def test_a_jpeg_pack_looks_like_the_photographs_and_is_other_data(
    imagenette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "part"  # every 40th photograph
    for split in SPLITS:
        for path in sorted((imagenette / "imagenette" / split).glob("*/*.JPEG"))[::40]:
            own = root / "imagenette" / split / path.parent.name / path.name
            own.parent.mkdir(parents=True, exist_ok=True)
            own.symlink_to(path)
    counts = {split: len(list((root / "imagenette" / split).glob("*/*"))) for split in SPLITS}
    monkeypatch.setitem(COLLECTIONS, "imagenette", collection(counts))
    data = DataConfig(name="imagenette", canvas=128, quality=90)
    packed(data, root)
    ours, plain = (
        open_dataset(data, "train", root),
        open_dataset(REAL.model_copy(update={"canvas": 128}), "train", root),
    )
    assert isinstance(ours.source, reader.JpegSource) and not isinstance(plain.source, reader.PackedSource)
    for one, other in zip(read(ours), read(plain), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))
        error = ((one.canvas.double() - other.canvas.double()) ** 2).mean(dim=(1, 2, 3))
        psnr = 10 * torch.log10(255**2 / error)
        assert psnr.min() > 24 and psnr.mean() > 32 and error.min() > 0, psnr
    assert len({source.fingerprint for source in (ours, plain, open_dataset(data, "val", root))}) == 3
    few = data.model_copy(update={"train_images": 50})
    assert len({open_dataset(one, "train", root).fingerprint for one in (few, data)}) == 2
    assert same(read(ours), read(ours, workers=2)), "every worker maps the file itself"


# -- what a job is ----------------------------------------------------------------------------------------------------
def test_quality_is_in_the_identity_only_where_it_is_set() -> None:
    plain, asked = (parse("pretrain", {"data": {"name": "imagenette", **more}}) for more in ({}, {"quality": 90}))
    assert identity(plain)["data"].keys() == {"name", "version", "canvas", "subset", "train_images", "val_images"}
    assert identity(asked)["data"] == {**identity(plain)["data"], "quality": 90}
    explicit = parse("pretrain", {"data": {"name": "imagenette", "quality": None}})
    assert identity(explicit) == identity(plain) and explicit == plain
    for config in (plain, asked):
        again = type(config).model_validate(config.model_dump())
        assert again == config == type(config).model_validate_json(config.model_dump_json())
        assert type(config.data).model_validate(config.model_dump(include={"data"})["data"]) == config.data


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"name": "cifar10", "quality": 90},
            "folders of images (imagenette, imagenet100, imagenet1k); cifar10 is none",
        ),
        ({"name": "scenes", "quality": 90}, "scenes is none"),
        ({"quality": 101}, "less than or equal to 100"),
        ({"quality": 0}, "greater than or equal to 1"),
    ],
)
def test_a_quality_that_cannot_be_is_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse("linear", {"data": values})
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_quality_without_a_pack_names_the_command_that_makes_it(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(TINY, tiny)  # of other pixels: it does not serve
    said = refusal(TINY_JPEG, tiny)
    assert f"`python -m jigclu.data pack imagenette --canvas 24 --quality 80 --root {tiny}`" in said
    assert main(said.split("`")[1].split()[3:]) == 0
    check(TINY_JPEG, tiny)
    assert "data.quality 80" in capsys.readouterr().out
    monkeypatch.setenv("JIGCLU_DATA", str(tiny))
    with pytest.raises(ConfigError, match=r"`python -m jigclu.data pack imagenette --canvas 24 --quality 81`"):
        check(TINY.model_copy(update={"quality": 81}))


def test_a_raw_pack_is_used_unasked_and_said_to_be(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = open_dataset(TINY, "train", tiny)
    folder = packed(TINY, tiny)
    with caplog.at_level(logging.INFO, logger="jigclu"):
        after = open_dataset(TINY, "train", tiny)
    assert str(folder) in caplog.text and "imagenette train is read from the pack" in caplog.text
    assert same(read(before), read(after)) and before.fingerprint == after.fingerprint
    assert not isinstance(before.source, reader.PackedSource) and isinstance(after.source, reader.RawSource)
    assert len(np.unique(after.extents, axis=0)) > 10  # type: ignore[call-overload]


@pytest.mark.parametrize("part", [{"subset": "10percent"}, {"train_images": 20, "val_images": 11}])
def test_a_part_of_a_pack_has_its_own_shapes_and_labels(part: dict[str, object], tiny: Path) -> None:
    data, jpeg = (data.model_copy(update=part) for data in (TINY, TINY_JPEG))
    for split in SPLITS:
        packed(jpeg, tiny)
        plain = read(open_dataset(data, split, tiny))
        packed(data, tiny)
        ours, other = (read(open_dataset(one, split, tiny)) for one in (data, jpeg))
        assert same(plain, ours)
        assert all(
            torch.equal(a, b)
            for one, two in zip(ours, other, strict=True)
            for a, b in zip(one[1:], two[1:], strict=True)
        )
        shutil.rmtree(tiny / "packed")


# -- is it whole ------------------------------------------------------------------------------------------------------
def flip(path: Path, place: int = -100) -> None:
    """Another byte there."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def edit(**facts: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("val.npy", cut, "val.npy has"),
        ("train.npy", flip, "train.npy is altered"),
        ("train.npy", Path.unlink, "there is no train.npy"),
        ("train.index.npz", flip, "train.index.npz is altered"),
        ("val.index.npz", cut, "val.index.npz has"),
        ("val.index.npz", Path.unlink, "there is no val.index.npz"),
        ("pack.json", Path.unlink, "there is no pack.json"),
        ("val.index.npz", lambda path: (path.unlink(), path.mkdir()), "val.index.npz cannot be read (Is a directory)"),
        ("pack.json", lambda path: os.truncate(path, 300), "pack.json is not one that this code reads (Invalid JSON"),
        ("pack.json", edit(format=2), "pack.json is not one that this code reads (format: "),
        ("pack.json", edit(canvas=25), "pack.json is about another pack (imagenette v2-128px 25 "),
        ("pack.json", edit(splits={}), "pack.json says nothing of train.index.npz"),
    ],
)
@pytest.mark.parametrize("data", [TINY, TINY_JPEG], ids=["raw", "jpeg"])
def test_a_pack_that_is_not_whole_is_refused_with_one_line(
    data: DataConfig, name: str, damage: Callable[[Path], None], told: str, tiny: Path
) -> None:
    """The whole folders beside it do not make it pass."""
    folder = packed(data, tiny)
    check(data, tiny)
    damage(folder / name)
    said = refusal(data, tiny)
    assert f"the pack {folder} is not whole: {told}" in said
    assert f"--root {tiny} --force`, or delete the folder" in said
    shutil.rmtree(folder)
    if data.quality is None:
        check(data, tiny)


def test_the_data_is_read_for_its_digest_once_for_every_state_of_the_file(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    read_files: list[str] = []

    def digest(path: Path) -> str:
        read_files.append(path.name)
        return plain(path)

    folder, plain = packed(TINY, tiny), reader.digest
    monkeypatch.setattr(reader, "digest", digest)
    check(TINY, tiny)
    check(TINY, tiny)
    assert read_files == ["train.npy", "val.npy"] * 2, "what was written in the last 2 s is not trusted yet"
    monkeypatch.setattr(reader, "SETTLED_NS", 0)
    for _ in range(3):
        check(TINY, tiny)
    assert read_files == ["train.npy", "val.npy"] * 3
    before = (folder / "train.npy").stat()
    flip(folder / "train.npy")
    os.utime(folder / "train.npy", ns=(before.st_atime_ns, before.st_mtime_ns))  # as nobody can be trusted not to
    assert "train.npy is altered" in refusal(TINY, tiny)
    flip(folder / "train.npy")
    check(TINY, tiny)
    for record in own_cache.glob("verified-*"):
        record.write_text("torn {")
    check(TINY, tiny)
    monkeypatch.setenv("JIGCLU_CACHE", "/dev/null/cache")
    check(TINY, tiny)


# -- reading ----------------------------------------------------------------------------------------------------------
def test_copying_is_what_a_dataloader_gives(tiny: Path, tmp_path: Path) -> None:
    packed(TINY, tiny)
    small_cifar(tmp_path)
    for data, root in ((TINY, tiny), (DataConfig(name="cifar10", canvas=32), tmp_path)):
        ours, theirs = (open_dataset(data, "train", root) for _ in range(2))
        assert ours.extents is not None
        theirs.extents = None  # so that it is decoded
        assert same(read(ours), read(theirs)) and same(read(ours, workers=2), read(theirs, workers=2))
        one = ours[3]
        (batch,) = batches(ours, [[3]], 0, Unreadable(), True)
        assert torch.equal(batch.canvas[0], one.canvas) and batch.sizes.tolist() == [[one.height, one.width]]
    assert open_dataset(DataConfig(name="cifar10", canvas=40), "train", tmp_path).extents is None
    assert open_dataset(DataConfig(name="scenes"), "train").extents is None


def test_canvases_on_the_device_are_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_CHUNK", 5 * 3 * 24 * 24)  # so that they go there in several
    packed(TINY, tiny)
    cpu, plain = torch.device("cpu"), read(open_dataset(TINY, "train", tiny))
    held = open_dataset(TINY, "train", tiny)
    canvases = held.resident(cpu, limit=40 * 3 * 24 * 24)
    assert canvases is not None and canvases.shape == (40, 3, 24, 24)
    shutil.rmtree(reader.folder_of(TINY, tiny))  # nothing more is read
    held.source.file._array = None  # type: ignore[attr-defined]
    assert same(read(held, device=cpu), plain) and held.resident(cpu) is canvases
    with pytest.raises(FileNotFoundError):
        read(held)


def test_what_does_not_fit_or_must_be_decoded_is_not_put_on_the_device(tiny: Path) -> None:
    cpu, folder = torch.device("cpu"), open_dataset(TINY, "train", tiny)
    packed(TINY, tiny)
    held = open_dataset(TINY, "train", tiny)
    assert held.resident(cpu, limit=40 * 3 * 24 * 24 - 1) is None
    assert folder.resident(cpu, limit=1 << 40) is None
    assert open_dataset(TINY, "train", tiny).resident(cpu) is None, "on a CPU the map serves"
    assert same(read(held, device=cpu), read(folder, device=cpu))


@pytest.mark.parametrize("data", [TINY, TINY_JPEG], ids=["raw", "jpeg"])
def test_a_process_that_is_sent_a_source_maps_the_file_itself(data: DataConfig, tiny: Path) -> None:
    packed(data, tiny)
    source = catalogue(data, "train", tiny)
    first = source.pixels(5, 24)
    sent = pickle.dumps(source)
    assert len(sent) < 20_000 < (reader.folder_of(data, tiny) / "train.npy").stat().st_size
    there: Source = pickle.loads(sent)
    np.testing.assert_array_equal(there.pixels(5, 24), first)
    assert max(there.pixels(5, 10).shape) == 10, "as any source it scales down to what is asked for"


def test_reading_packs_needs_no_torch() -> None:
    code = "import sys, jigclu.data.packing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- writing ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [TINY, TINY_JPEG], ids=["raw", "jpeg"])
def test_any_number_of_workers_writes_the_same_bytes(
    data: DataConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_SPAN_BYTES", 3 * 24 * 24 * 3)  # three images at a time: more spans than may wait
    found = []
    for workers in (0, 2):
        folder = packed(data, tiny, workers)
        found.append({name: (folder / name).read_bytes() for name in os.listdir(folder) if name != "pack.json"})
        shutil.rmtree(folder)
    assert found[0] == found[1] and len(found[0]) == 4


def test_the_files_are_numpys(tiny: Path) -> None:
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
import test_pack
from jigclu.data.__main__ import main
from jigclu.data.catalog import COLLECTIONS
from jigclu.data.folders import FolderSource
COLLECTIONS["imagenette"] = test_pack.collection(test_pack.COUNTS)
plain = FolderSource.pixels
FolderSource.pixels = lambda *given: (time.sleep(0.2), plain(*given))[1]
test_pack.packing._SPAN_BYTES = 1
sys.exit(main(["pack", "imagenette", "--canvas", "24", "--workers", "2", "--root", {root!r}]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pack_is_none_and_the_next_one_clears_up(number: signal.Signals, tiny: Path) -> None:
    code = SLOW.format(tests=str(Path(__file__).parent), root=str(tiny))
    writer = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    aside = tiny / "packed" / ".imagenette-v2-128px-24px.packing"
    deadline = time.monotonic() + 60
    while not ((aside / "train.npy").exists() and (aside / "train.npy").stat().st_size > 1000):
        assert writer.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(packing.PackError, match="is being written by another process"):
        packing.pack(TINY, tiny, 0)
    assert (aside / "train.npy").exists() and writer.poll() is None
    writer.send_signal(number)
    told = writer.communicate(timeout=60)[1]
    if number == signal.SIGKILL:
        assert visible(tiny) == [aside.name]
    else:
        assert visible(tiny) == [] and writer.returncode == 128 + number
        assert told == ("interrupted; nothing was kept\n" if number == signal.SIGINT else "")
    assert not isinstance(open_dataset(TINY, "train", tiny).source, reader.PackedSource)
    while True:  # the killed one's workers end when they notice, and the lock goes with them
        try:
            packed(TINY, tiny)
            break
        except packing.PackError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert visible(tiny) == ["imagenette-v2-128px-24px"]
    check(TINY, tiny)


def test_a_pack_that_is_there_is_said_to_be_and_a_broken_one_is_replaced_by_force(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["pack", "imagenette", "--canvas", "24", "--workers", "0", "--root", str(tiny)]
    assert main(asked) == 0
    first = capsys.readouterr().out
    assert "60 images, 0.00 GB, at " in first and "jobs with data.canvas 24 read it" in first
    folder = reader.folder_of(TINY, tiny)
    made = (folder / "train.npy").stat().st_ino
    assert main(asked) == 0 and "is packed already, whole" in capsys.readouterr().out
    assert (folder / "train.npy").stat().st_ino == made
    flip(folder / "train.npy")
    assert main(asked) == 1
    told = capsys.readouterr().err
    assert "train.npy is altered" in told and "--force" in told and told.count("\n") == 1
    assert main(["check", "imagenette", "--root", str(tiny)]) == 1
    assert main([*asked, "--force"]) == 0 and visible(tiny) == [folder.name]
    assert main(["check", "imagenette", "--root", str(tiny)]) == 0


def test_check_tells_of_packs_and_of_folders_that_changed_since(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--root", str(tiny)]
    for data in (TINY_JPEG, TINY):
        packed(data, tiny)
    assert main(["check", "imagenette", *asked]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(";")[-1] for line in lines[3:]] == [
        " jobs with data.canvas 24 read it",
        " jobs with data.canvas 24 and data.quality 80 read it (--set pretrain.data.quality=80: other pixels, so other jobs)",
    ]
    assert all(line.startswith(f"pack   {tiny}") and ": whole, 0.00 GB" in line for line in lines[3:])
    main(["check", "all", *asked])
    told = capsys.readouterr().out
    assert "packed: imagenette-v2-128px-24px, imagenette-v2-128px-24px-q80)" in told
    victim = next((tiny / "imagenette" / "val" / "n3").iterdir())
    Image.new("RGB", (5, 5)).save(victim)
    os.utime(victim.parent)
    assert main(["check", "imagenette", *asked]) == 1
    told = capsys.readouterr().err
    assert told.count("made from other val images than imagenette's folders hold") == told.count("\n") == 2
    assert main(["pack", "imagenette", "--canvas", "24", *asked]) == 1
    assert "made from other val images" in capsys.readouterr().err
    shutil.rmtree(tiny / "imagenette")
    assert main(["check", "imagenette", *asked]) == 0
    assert "packs alone, no folders" in capsys.readouterr().out
    assert main(["pack", "imagenette", "--canvas", "24", *asked]) == 0
    main(["check", "all", *asked])
    assert "imagenette   ok (no folders, packed: " in capsys.readouterr().out
    cut(reader.folder_of(TINY, tiny) / "val.npy")
    main(["check", "all", *asked])
    assert "imagenette   data set imagenette: the pack " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["cifar10"], 2, "cifar10 is not packed: it is one array in memory as it is; those that are: imagenette,"),
        (["scenes"], 2, "scenes is not packed: scenes are drawn when they are read"),
        (["coco_mini"], 2, "coco_mini is not packed: the detection stage reads it"),
        (["imagenete"], 2, "did you mean imagenette?"),
        (["imagenette", "--quality", "0"], 2, "--quality 1 to 100"),
        (["imagenette", "--canvas", "0"], 2, "--canvas is at least 1"),
        (["imagenet1k"], 1, "there is no such folder; get ILSVRC2012"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_one_line(
    arguments: list[str], status: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", *arguments, "--root", str(tmp_path)]) == status
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_disk_without_room_or_leave_to_write_is_one_line(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 60 * 3 * 24 * 24 - 1))  # type: ignore[attr-defined]
        with pytest.raises(packing.PackError, match=r"has 0.0 GB free; the pack takes 0.0 GB"):
            packed(TINY, tiny)
    assert visible(tiny) == []
    shutil.rmtree(tiny / "packed")
    (tiny / "packed").write_text("no folder")
    with pytest.raises(packing.PackError, match="File exists; nothing was kept"):
        packed(TINY, tiny)


def test_unreadable_images_keep_their_places_or_stop_the_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of 1000 is what training steps over; two are too many."""
    root, counts = tmp_path / "root", {"train": 1000, "val": 10}
    for split, count in counts.items():
        for i in range(count):
            path = root / "imagenette" / split / f"n{i % 10}" / f"{i:04}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), (i % 250,) * 3).save(path)
    monkeypatch.setitem(COLLECTIONS, "imagenette", collection(counts))
    data = DataConfig(name="imagenette", canvas=8)
    victims = [root / "imagenette" / "train" / name for name in ("n4/0014.JPEG", "n2/0332.JPEG")]
    victims[0].write_bytes(victims[0].read_bytes()[:200])
    os.utime(victims[0].parent)
    plain = [
        (read(from_files(data, "train", root), substitute, workers))
        for substitute in (True, False)
        for workers in (0, 2)
    ]
    for one in (data, data.model_copy(update={"quality": 100})):
        assert "(1 of them unreadable)" in packing.pack(one, root, 0)
        ours = open_dataset(one, "train", root)
        found = [read(ours, substitute, workers) for substitute in (True, False) for workers in (0, 2)]
        assert all(same([b._replace(canvas=b.labels) for b in a], [c._replace(canvas=c.labels) for c in d])
                   for a, d in zip(found, plain, strict=True))  # fmt: skip
        assert one.quality or all(same(a, b) for a, b in zip(found, plain, strict=True))
        assert not ours[int(np.flatnonzero(ours.paths == "n4/0014.JPEG")[0])].readable
    assert "unreadable image, left out: n4/0014.JPEG" in caplog.text
    victims[1].write_bytes(b"")
    os.utime(victims[1].parent)
    shutil.rmtree(root / "packed")
    with pytest.raises(packing.PackError) as error:
        packed(data, root)
    assert f"2 of 1000 train images are unreadable (over 0.1 %), the first is {victims[1]}" in str(error.value)
    assert visible(root) == [] and "\n" not in str(error.value)
