"""Folders of images that a disk, a copy or a user has changed: what opening, `check` and `pack` say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.packs import COUNTS, TINY, folders, packed, register

from jigclu.config import ConfigError, PretrainConfig
from jigclu.data.__main__ import main
from jigclu.data.catalog import SPLITS, catalogue, check, current_fingerprint
from jigclu.data.pack_writer import pack
from jigclu.data.sources import folder_index


def errors(root: Path) -> list[str]:
    found = []
    for use in (
        lambda: check(TINY, root),
        lambda: catalogue(TINY, "train", root),
        lambda: catalogue(TINY, "val", root),
        lambda: pack(TINY, root, 0),
        lambda: current_fingerprint(PretrainConfig(data=TINY), root),
    ):
        with pytest.raises(ConfigError) as error:
            use()
        found.append(str(error.value))
    return found


def test_a_class_folder_that_only_one_split_has_is_named_with_its_side(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny / "imagenette/val/n3").rename(tiny / "imagenette/val/zz")
    for message in errors(tiny):
        assert "train and val have different class folders: only train has n3, only val has zz;" in message
    assert main(["check", "imagenette", "--root", str(tiny)]) == 1
    assert "only train has n3, only val has zz" in capsys.readouterr().err


def test_packs_made_before_the_splits_were_compared_are_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny / "imagenette/val/n3").rename(tiny / "imagenette/val/zz")
    with monkeypatch.context() as patch:
        patch.setattr("jigclu.data.sources.folders.FolderCollection._compare_splits", lambda *_: None)
        packed(TINY, tiny)
    with pytest.raises(ConfigError, match=r"val images of class n4 are labelled n3"):
        check(TINY, tiny)


@pytest.mark.parametrize("name", ["lost+found", "@eaDir", ".cache"])
def test_folders_of_the_file_system_are_no_classes(name: str, tiny: Path) -> None:
    (tiny / "imagenette/val" / name).mkdir()
    check(TINY, tiny)
    if name != ".cache":
        (tiny / "imagenette/val" / name / "0.JPEG").write_bytes(b"1")
        assert all(f"only val has {name};" in message for message in errors(tiny))


def test_an_extra_folder_in_both_splits_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, COUNTS)
    root = folders(tmp_path, COUNTS)
    for split in SPLITS:
        (root / "imagenette" / split / "more").mkdir()
    assert "11 class folders, not 10 (without images: more);" in errors(root)[0]
    for split in SPLITS:
        (root / "imagenette" / split / "more/x.jpg").write_bytes(b"1")
        for number in range(10):
            folder = root / "imagenette" / split
            (folder / f"n{number}").rename(folder / f"n{number:08}")
    assert "11 class folders, not 10 (not named like a class: more);" in errors(root)[0]


def test_a_file_name_that_is_not_utf8_is_named(tiny: Path) -> None:
    os.rename(tiny / "imagenette/val/n3/0003.png", os.fsencode(tiny / "imagenette/val/n3") + b"/caf\xe9.png")
    message = errors_of_val(tiny)
    assert "n3: the file name caf\\xe9.png is not valid UTF-8; rename it;" in message


def test_a_link_that_loops_is_named(tiny: Path) -> None:
    path = tiny / "imagenette/val/n3/0003.png"
    path.unlink()
    path.symlink_to(path)
    assert f"{path}: cannot be read (Too many levels of symbolic links)" in errors_of_val(tiny)
    path.unlink()
    path.mkdir()  # a folder named like an image is no image
    assert "class folder n3" not in errors_of_val(tiny) and "19 images, not 20" in errors_of_val(tiny)


def errors_of_val(root: Path) -> str:
    with pytest.raises(ConfigError) as error:
        catalogue(TINY, "val", root)
    message = str(error.value)
    assert "\n" not in message and message.encode()
    return message


# -- the cached listing -----------------------------------------------------------------------------------------------
@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings are cached at once."""
    monkeypatch.setattr(folder_index, "SETTLED_NS", -1)


def fingerprint(root: Path) -> str:
    return catalogue(TINY, "train", root).fingerprint


@pytest.mark.usefixtures("trusted")
def test_a_copy_that_restores_the_folders_mtime_is_noticed(tiny: Path) -> None:
    before, folder = fingerprint(tiny), tiny / "imagenette/train/n0"
    times = folder.stat()
    (folder / "0000.JPEG").rename(folder / "0000.jpg")
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(tiny) != before


@pytest.mark.usefixtures("trusted")
def test_images_overwritten_in_place_are_noticed_by_a_job(tiny: Path) -> None:
    before = fingerprint(tiny)
    for path in (tiny / "imagenette/train/n0").iterdir():
        path.write_bytes(b"1234")
    assert fingerprint(tiny) != before


@pytest.mark.usefixtures("trusted")
def test_check_and_pack_do_not_trust_the_cached_listing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder_index, "SAMPLED", 0)
    before = fingerprint(tiny)
    with (tiny / "imagenette/train/n0/0000.JPEG").open("ab") as file:
        file.write(b"1")
    assert fingerprint(tiny) == before, "the cached listing of a job"
    pack(TINY, tiny, 0)
    now = fingerprint(tiny)
    assert now != before
    with (tiny / "imagenette/train/n0/0000.JPEG").open("ab") as file:
        file.write(b"1")
    assert main(["check", "imagenette", "--root", str(tiny)]) == 1
    assert f"was made from different train images than imagenette's folders now contain (fingerprint {now}" in (
        capsys.readouterr().err
    )
