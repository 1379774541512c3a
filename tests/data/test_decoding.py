"""Image files of every mode become the right 8-bit RGB pixels; broken and too small ones are named."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.packs import COUNTS, TINY, folders, from_files, packed, read, register
from PIL import Image

from jigclu.config import parse
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.data.loader import DataError, Unreadable, batches
from jigclu.data.sources.decoding import decode
from jigclu.job_folder import JobFolder
from jigclu.stages import knn, pretrain

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY = np.stack([RAMP] * 3)  # what the grey images decode to
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


def decoded(tmp_path: Path, image: Image.Image, name: str = "image.png", **options: Any) -> np.ndarray:
    image.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode(tmp_path / name, 16)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = RAMP.astype(np.uint16) * 257
    np.testing.assert_array_equal(decoded(tmp_path, Image.fromarray(deep)), GREY)
    np.testing.assert_array_equal(decoded(tmp_path, Image.fromarray(deep), "little.tif"), GREY)
    np.testing.assert_array_equal(decoded(tmp_path, Image.fromarray(deep.astype(">u2")), "big.tif"), GREY)
    low = np.full((16, 16), 257 * 3 + 128, np.uint16)  # rounded, not cut
    assert (decoded(tmp_path, Image.fromarray(low)) == 3).all()
    assert (decoded(tmp_path, Image.fromarray(low + 2)) == 4).all()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bits_per_pixel_have_no_white_and_are_refused(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pixels of 32 bits"):
        decoded(tmp_path, Image.fromarray(RAMP.astype(kind)), "image.tif")


def test_the_other_modes_give_their_colours_and_lose_their_alpha(tmp_path: Path) -> None:
    grey, colour = Image.fromarray(RAMP), Image.fromarray(COLOUR)
    alpha = Image.fromarray(RAMP[::-1].copy())
    np.testing.assert_array_equal(decoded(tmp_path, grey), GREY)
    with_alpha = Image.merge("LA", (grey, alpha))
    np.testing.assert_array_equal(decoded(tmp_path, with_alpha), GREY)
    rgba = colour.copy()
    rgba.putalpha(alpha)
    np.testing.assert_array_equal(decoded(tmp_path, rgba), COLOUR.transpose(2, 0, 1))
    np.testing.assert_array_equal(decoded(tmp_path, Image.fromarray(RAMP > 99)), np.where(GREY > 99, 255, 0))
    palette = grey.convert("P")
    for transparency in (0, bytes(range(256))):
        np.testing.assert_array_equal(decoded(tmp_path, palette, transparency=transparency), GREY)


def test_cmyk_jpegs_have_the_colours_of_the_same_rgb_jpeg(tmp_path: Path) -> None:
    colour = Image.fromarray(np.full((16, 16, 3), (200, 100, 30), np.uint8))
    found = decoded(tmp_path, colour.convert("CMYK"), "cmyk.jpg", quality=95)
    np.testing.assert_allclose(found.reshape(3, -1).mean(1), (200, 100, 30), atol=3)


# -- broken and too small ones ----------------------------------------------------------------------------------------
@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    register(monkeypatch, COUNTS)
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path / "root"))
    monkeypatch.setattr("jigclu.data.loader.MOST_UNREADABLE", 0.3)
    yield folders(tmp_path / "root", COUNTS)


def victim(root: Path, split: str = "train") -> Path:
    return root / "imagenette" / split / "n0" / "0000.JPEG"


def shapes(dataset: CanvasDataset, unreadable: Unreadable) -> list[int]:
    groups = [list(range(len(dataset)))]
    return [int(side) for batch in batches(dataset, groups, 0, unreadable, False) for side in batch.sizes.min(1).values]


def test_an_image_too_small_to_split_is_skipped_and_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (30, 1)).save(victim(root))
    for _ in range(2):  # from the folders, then from a pack
        unreadable = Unreadable()
        with caplog.at_level(logging.WARNING, "jigclu"):
            assert min(shapes(open_dataset(TINY, "train", root, smallest=2), unreadable)) >= 2
        assert unreadable.paths == ["n0/0000.JPEG"]
        assert "skipped: n0/0000.JPEG (24 x 1 pixels; at least 2 on each side are needed)" in caplog.text
        assert min(shapes(open_dataset(TINY, "train", root), Unreadable())) == 1
        caplog.clear()
        packed(TINY, root)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot identify image file"), (b"text", "cannot identify image file"), (None, "image file is truncated")],
)
def test_broken_files_are_named_with_the_reason(
    content: bytes | None, reason: str, root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = victim(root)
    Image.effect_noise((60, 60), 99).save(path)
    path.write_bytes(path.read_bytes()[:-700] if content is None else content)
    with caplog.at_level(logging.WARNING, "jigclu"):
        read(from_files(TINY, "train", root))
    assert f"unreadable image, skipped: n0/0000.JPEG ({reason}" in caplog.text
    monkeypatch.setattr("jigclu.data.loader.MOST_UNREADABLE", 0.001)
    with pytest.raises(DataError, match=rf"1 of 40 images .* the first is n0/0000\.JPEG \({reason}"):
        read(from_files(TINY, "train", root))


@pytest.mark.parametrize("augment", ["after", "during", "before"])
def test_a_job_does_not_die_of_an_image_of_one_pixel(augment: str, root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(victim(root))
    Image.new("RGB", (40, 1)).save(victim(root, "val"))
    common = {
        "data": {"name": "imagenette", "canvas": 32}, "backbone": "resnet18", "image_size": 32, "batch_size": 20,
        "runtime": {"device": "cpu", "threads": 1, "workers": 0},
    }  # fmt: skip
    job = JobFolder(tmp_path / "pretrain" / "abcd").create()
    config = parse("pretrain", {**common, "epochs": 1, "method": {"augment": augment, "m": 2}})
    result = pretrain.run(config, job.path)  # type: ignore[arg-type]
    assert "n0/0000.JPEG" in result["unreadable"] and (augment == "during" or len(result["unreadable"]) == 1)
    if augment == "after":
        job = JobFolder(tmp_path / "knn" / "abcd").create()
        evaluated = knn.run(parse("knn", {**common, "resize": 36}), job.path)  # type: ignore[arg-type]
        assert evaluated["val_images"] == 20, "the evaluation needs no patches, so it keeps every image"
