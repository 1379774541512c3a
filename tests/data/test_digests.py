"""`check NAME --digests`, and what the command says about wrong use."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from helpers.packs import flip
from helpers.small_cifar import small_cifar

from jigclu.data.__main__ import main


def seal(root: Path) -> Path:
    folder = root / "imagenette"
    files = sorted(path for split in ("train", "val") for path in (folder / split).rglob("*.*"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def checked(root: Path, capsys: pytest.CaptureFixture[str], name: str = "imagenette") -> tuple[int, str, str]:
    status = main(["check", name, "--digests", "--root", str(root)])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_bytes_altered_inside_an_image_are_found_by_its_digest(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = seal(tiny)
    status, out, err = checked(tiny, capsys)
    assert (status, err) == (0, "") and out.endswith("digests: 60 files are as SHA256SUMS lists them\n")
    flip(folder / "val/n0/0010.png")
    flip(folder / "train/n1/0001.JPEG")
    assert main(["check", "imagenette", "--root", str(tiny)]) == 0, "the sizes are the same"
    capsys.readouterr()
    status, _, err = checked(tiny, capsys)
    assert status == 1 and err.count("\n") == 1
    assert f"of 60 files in {folder}/SHA256SUMS, 2 differ: train/n1/0001.JPEG, val/n0/0010.png\n" in err


def test_files_that_are_missing_or_not_listed_are_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = seal(tiny)
    (folder / "train/n1/0001.JPEG").rename(folder / "train/n1/other.JPEG")
    status, _, err = checked(tiny, capsys)
    assert status == 1 and "1 cannot be read: train/n1/0001.JPEG; 1 are not listed: train/n1/other.JPEG\n" in err


def test_sets_without_digests_say_so(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = checked(tiny, capsys)
    assert status == 1 and f"has no {tiny}/imagenette/SHA256SUMS, so there are no digests to compare with" in err
    small_cifar(tiny)
    assert checked(tiny, capsys, "cifar10")[1].endswith("digests: files verified against SHA256SUMS\n")
    assert "has no files" in checked(tiny, capsys, "coco_scenes")[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["check", "all", "--digests"], "--digests reads every file of one data set: give its name instead of all"),
        (["get", "imagenete"], "valid: cifar10, cifar100, imagenette, imagenette_full; did you mean imagenette?"),
        (
            ["pack", "imagenete"],
            "valid: imagenet100, imagenet1k, imagenette, imagenette_full; did you mean imagenette?",
        ),
        (["check", "imagenete"], "textures; did you mean imagenette?"),
        (["pack", "cifar10"], "cifar10 is not packed: it is one array in memory already; data sets that are: "),
        (["pack", "imagenette", "--quality", "101"], "--quality must be at most 100, not 101"),
        (["pack", "imagenette", "--quality", "0"], "--quality must be at least 1, not 0"),
        (["pack", "imagenette", "--canvas", "0"], "--canvas must be at least 1, not 0"),
        (["pack", "imagenette", "--workers", "-1"], "--workers must be at least 0, not -1"),
    ],
)
def test_wrong_use_is_one_line_that_names_the_flag_and_what_was_given(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main([*arguments, "--root", str(tmp_path)])
    except SystemExit as end:  # of the parser
        status = end.code
    assert status == 2
    output = capsys.readouterr()
    assert expected in output.err and output.err.count("\n") == 1 and not output.out


def test_help_lists_only_sets_that_the_verb_can_handle(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, absent in (("get", "scenes"), ("pack", "cifar10")):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        text = capsys.readouterr().out
        assert "imagenette" in text and absent not in text
