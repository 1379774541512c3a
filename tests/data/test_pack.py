"""Reading packs: the same numbers as the folders, and an error unless they are complete."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.packs import REAL, TINY, TINY_JPEG, cut, flip, from_files, packed, read, register, same
from helpers.small_cifar import small_cifar

from jigclu.config import ConfigError, DataConfig, identity, parse
from jigclu.data import canvases, pack_writer
from jigclu.data.__main__ import main
from jigclu.data.canvases import open_dataset
from jigclu.data.catalog import catalogue, check
from jigclu.data.loader import Unreadable, batches
from jigclu.data.sources import folder_index
from jigclu.data.sources import packed as reader
from jigclu.data.sources.base import SPLITS, Source, Split


def refusal(data: DataConfig, root: Path) -> str:
    """The one line that `check` raises; opening the data set raises too."""
    with pytest.raises(ConfigError) as error:
        check(data, root)
    with pytest.raises(ConfigError, match=r"data set imagenette"):
        for split in SPLITS:
            open_dataset(data, split, root)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- real photographs -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(imagenette: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with links to Imagenette and its raw pack."""
    root = tmp_path_factory.mktemp("real")
    (root / "imagenette").symlink_to(imagenette / "imagenette")
    pack_writer.pack(REAL, root, 2)
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
    raw, plain = open_dataset(data, split, real), from_files(data, split, imagenette)
    assert isinstance(raw.source, reader.RawSource) and not isinstance(plain.source, reader.PackedSource)
    assert same(read(raw, size=256), read(plain, size=256))
    assert raw.fingerprint == plain.fingerprint == open_dataset(data, split, imagenette).fingerprint
    assert raw.paths.tolist() == plain.paths.tolist() and raw.classes == plain.classes


def test_a_pack_is_enough_without_the_folders(real: Path, imagenette: Path, tmp_path: Path) -> None:
    """Also subsets by list, if the lists are there."""
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


def test_a_jpeg_pack_resembles_the_photographs_but_counts_as_different_data(
    imagenette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "part"  # every 40th photograph
    for split in SPLITS:
        for path in sorted((imagenette / "imagenette" / split).glob("*/*.JPEG"))[::40]:
            own = root / "imagenette" / split / path.parent.name / path.name
            own.parent.mkdir(parents=True, exist_ok=True)
            own.symlink_to(path)
    counts = {split: len(list((root / "imagenette" / split).glob("*/*"))) for split in SPLITS}
    register(monkeypatch, counts)
    data = DataConfig(name="imagenette", canvas=128, quality=90)
    packed(data, root)
    jpeg, plain = (
        open_dataset(data, "train", root),
        open_dataset(REAL.model_copy(update={"canvas": 128}), "train", root),
    )
    assert isinstance(jpeg.source, reader.JpegSource) and not isinstance(plain.source, reader.PackedSource)
    for one, other in zip(read(jpeg), read(plain), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))
        squared = ((one.canvas.double() - other.canvas.double()) ** 2).mean(dim=(1, 2, 3))
        psnr = 10 * torch.log10(255**2 / squared)
        assert psnr.min() > 24 and psnr.mean() > 32 and squared.min() > 0, psnr
    assert len({source.fingerprint for source in (jpeg, plain, open_dataset(data, "val", root))}) == 3
    few = data.model_copy(update={"train_images": 50})
    assert len({open_dataset(one, "train", root).fingerprint for one in (few, data)}) == 2
    assert same(read(jpeg), read(jpeg, workers=2)), "every worker maps the file itself"


# -- identity of a job ------------------------------------------------------------------------------------------------
def test_quality_is_in_the_identity_only_if_it_is_set() -> None:
    plain, jpeg = (parse("pretrain", {"data": {"name": "imagenette", **more}}) for more in ({}, {"quality": 90}))
    assert identity(plain)["data"].keys() == {"name", "version", "canvas", "subset", "train_images", "val_images"}
    assert identity(jpeg)["data"] == {**identity(plain)["data"], "quality": 90}
    explicit = parse("pretrain", {"data": {"name": "imagenette", "quality": None}})
    assert identity(explicit) == identity(plain) and explicit == plain
    for config in (plain, jpeg):
        again = type(config).model_validate(config.model_dump())
        assert again == config == type(config).model_validate_json(config.model_dump_json())
        assert type(config.data).model_validate(config.model_dump(include={"data"})["data"]) == config.data


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"name": "cifar10", "quality": 90},
            "folders of images (imagenette, imagenette_full, imagenet100, imagenet1k), not cifar10",
        ),
        ({"name": "scenes", "quality": 90}, "not scenes"),
        ({"quality": 101}, "less than or equal to 100"),
        ({"quality": 0}, "must be at least 1"),
    ],
)
def test_an_invalid_quality_is_an_error(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse("linear", {"data": values})
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_quality_without_a_pack_names_the_command_that_makes_it(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(TINY, tiny)  # has different pixels, so it is not used
    error = refusal(TINY_JPEG, tiny)
    assert f"`python -m jigclu.data pack imagenette --canvas 24 --quality 80 --root {tiny}`" in error
    assert main(error.split("`")[1].split()[3:]) == 0
    check(TINY_JPEG, tiny)
    assert "data.quality 80" in capsys.readouterr().out
    monkeypatch.setenv("JIGCLU_DATA", str(tiny))
    with pytest.raises(ConfigError, match=r"`python -m jigclu.data pack imagenette --canvas 24 --quality 81`"):
        check(TINY.model_copy(update={"quality": 81}))


def test_a_raw_pack_is_used_automatically_and_logged(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
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
        raw, encoded = (read(open_dataset(config, split, tiny)) for config in (data, jpeg))
        assert same(plain, raw)
        assert all(
            torch.equal(a, b)
            for one, two in zip(raw, encoded, strict=True)
            for a, b in zip(one[1:], two[1:], strict=True)
        )
        shutil.rmtree(tiny / "packed")


# -- is it complete ---------------------------------------------------------------------------------------------------
def edit(**facts: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("val.npy", cut, "val.npy has"),
        ("train.npy", flip, "train.npy is altered"),
        ("train.npy", Path.unlink, "there is no train.npy"),
        ("train.index.npz", flip, "train.index.npz is altered"),
        ("val.index.npz", cut, "val.index.npz has"),
        ("val.index.npz", Path.unlink, "there is no val.index.npz"),
        ("pack.json", Path.unlink, "there is no pack.json"),
        ("val.index.npz", lambda path: (path.unlink(), path.mkdir()), "val.index.npz cannot be read (Is a directory)"),
        ("pack.json", lambda path: os.truncate(path, 300), "pack.json cannot be read by this version (Invalid JSON"),
        ("pack.json", edit(format=2), "pack.json cannot be read by this version (format: "),
        ("pack.json", edit(canvas=25), "pack.json describes another pack (imagenette v2-128px 25 "),
        ("pack.json", edit(splits={}), "pack.json does not list train.index.npz"),
    ],
)
@pytest.mark.parametrize("data", [TINY, TINY_JPEG], ids=["raw", "jpeg"])
def test_a_damaged_pack_is_a_one_line_error(
    data: DataConfig, name: str, damage: Callable[[Path], None], expected: str, tiny: Path
) -> None:
    """Complete folders beside it do not make it pass."""
    folder = packed(data, tiny)
    check(data, tiny)
    damage(folder / name)
    error = refusal(data, tiny)
    assert f"the pack {folder} is damaged: {expected}" in error
    assert f"--root {tiny} --force`, or delete the folder" in error
    shutil.rmtree(folder)
    if data.quality is None:
        check(data, tiny)


def test_the_digest_is_computed_once_per_state_of_the_file(
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
    assert read_files == ["train.npy", "val.npy"] * 2, "a file written in the last 2 s is not trusted yet"
    monkeypatch.setattr(folder_index, "SETTLED_NS", 0)
    for _ in range(3):
        check(TINY, tiny)
    assert read_files == ["train.npy", "val.npy"] * 3
    before = (folder / "train.npy").stat()
    flip(folder / "train.npy")
    os.utime(
        folder / "train.npy", ns=(before.st_atime_ns, before.st_mtime_ns)
    )  # so that size and mtime do not show the change
    assert "train.npy is altered" in refusal(TINY, tiny)
    flip(folder / "train.npy")
    check(TINY, tiny)
    for record in own_cache.glob("verified-*"):
        record.write_text("torn {")
    check(TINY, tiny)
    monkeypatch.setenv("JIGCLU_CACHE", "/dev/null/cache")
    check(TINY, tiny)


# -- reading ----------------------------------------------------------------------------------------------------------
def test_copying_gives_the_same_batches_as_a_dataloader(tiny: Path, tmp_path: Path) -> None:
    packed(TINY, tiny)
    small_cifar(tmp_path)
    for data, root in ((TINY, tiny), (DataConfig(name="cifar10", canvas=32), tmp_path)):
        copied, decoded = (open_dataset(data, "train", root) for _ in range(2))
        assert copied.extents is not None
        decoded.extents = None  # forces decoding
        assert same(read(copied), read(decoded)) and same(read(copied, workers=2), read(decoded, workers=2))
        sample = copied[3]
        (batch,) = batches(copied, [[3]], 0, Unreadable(), True)
        assert torch.equal(batch.canvas[0], sample.canvas) and batch.sizes.tolist() == [[sample.height, sample.width]]
    assert open_dataset(DataConfig(name="cifar10", canvas=40), "train", tmp_path).extents is None
    assert open_dataset(DataConfig(name="scenes"), "train").extents is None


def test_canvases_on_the_device_are_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvases, "_CHUNK", 5 * 3 * 24 * 24)  # so that they are uploaded in several chunks
    packed(TINY, tiny)
    cpu, plain = torch.device("cpu"), read(open_dataset(TINY, "train", tiny))
    packed_set = open_dataset(TINY, "train", tiny)
    resident = packed_set.resident(cpu, limit=40 * 3 * 24 * 24)
    assert resident is not None and resident.shape == (40, 3, 24, 24)
    shutil.rmtree(reader.folder_of(TINY, tiny))  # nothing more can be read
    packed_set.source.file._array = None  # type: ignore[attr-defined]
    assert same(read(packed_set, device=cpu), plain) and packed_set.resident(cpu) is resident
    with pytest.raises(ConfigError, match="cannot be read now"):
        read(packed_set)


def test_data_that_is_too_large_or_must_be_decoded_stays_off_the_device(tiny: Path) -> None:
    cpu, folder = torch.device("cpu"), open_dataset(TINY, "train", tiny)
    packed(TINY, tiny)
    packed_set = open_dataset(TINY, "train", tiny)
    assert packed_set.resident(cpu, limit=40 * 3 * 24 * 24 - 1) is None
    assert folder.resident(cpu, limit=1 << 40) is None
    assert open_dataset(TINY, "train", tiny).resident(cpu) is None, "on a CPU the memory map is enough"
    assert same(read(packed_set, device=cpu), read(folder, device=cpu))


@pytest.mark.parametrize("data", [TINY, TINY_JPEG], ids=["raw", "jpeg"])
def test_an_unpickled_source_maps_the_file_itself(data: DataConfig, tiny: Path) -> None:
    packed(data, tiny)
    source = catalogue(data, "train", tiny)
    first = source.pixels(5, 24)
    sent = pickle.dumps(source)
    assert len(sent) < 20_000 < (reader.folder_of(data, tiny) / "train.npy").stat().st_size
    there: Source = pickle.loads(sent)
    np.testing.assert_array_equal(there.pixels(5, 24), first)
    assert max(there.pixels(5, 10).shape) == 10, "like any source it scales down to the requested size"


@pytest.mark.parametrize("data", [TINY, TINY_JPEG], ids=["raw", "jpeg"])
def test_a_pack_replaced_during_a_job_is_an_error(data: DataConfig, tiny: Path) -> None:
    """Workers of a later epoch map the file again and would read other images with the old index."""
    packed(data, tiny)
    dataset = open_dataset(data, "train", tiny)
    (tiny / "imagenette" / "train" / "n0" / "0000.JPEG").rename(tiny / "imagenette" / "train" / "n1" / "9999.JPEG")
    pack_writer.pack(data, tiny, 0, force=True)
    with pytest.raises(ConfigError, match=r"train\.npy was replaced while it was being read"):
        list(batches(dataset, [[3, 4]], 0, Unreadable(), substitute=True))


PEAK = """
import sys
import numpy as np, torch
from jigclu.data.sources.packed import Mapped, RawSource
from jigclu.training.usage import peak_memory_mb
from pathlib import Path
path = Path(sys.argv[1])
np.save(path, np.ones((4096, 3, 128, 128), dtype=np.uint8))
found = path.stat()
rows = np.arange(4096)
source = RawSource(paths=rows, labels=rows, classes=[], folder=path, canvas=128, sizes=rows, shapes=rows, starts=rows,
    file=Mapped(path, (found.st_size, found.st_mtime_ns, found.st_ino)))
out, before = np.empty((64, 3, 128, 128), dtype=np.uint8), Path("/proc/self/clear_refs").write_text("5")
before = peak_memory_mb(torch.device("cpu"))
for start in range(0, 4096, 64):
    source.copy_into(out, rows[start : start + 64])
print(peak_memory_mb(torch.device("cpu")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is only known on Linux")
def test_a_pack_is_not_counted_as_memory_of_the_process(tmp_path: Path) -> None:
    """Otherwise Table 6's memory would depend on whether the data is packed, here by 192 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "a.npy")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 20


def test_reading_packs_needs_no_torch() -> None:
    code = "import sys, jigclu.data.pack_writer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
