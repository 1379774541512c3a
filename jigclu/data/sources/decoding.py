"""An image file as pixels: RGB, scaled down to fit a canvas."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image


def decode(path: Path, longest: int, expected: int | None = None) -> np.ndarray:
    """(3, h, w) uint8 RGB, scaled down (never up) with PIL's antialiased bilinear so that max(h, w) <= longest.

    A much larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size (`draft`), never smaller than the result.
    `expected`: its size in bytes when the data set was listed; ValueError if it has another now.
    EXIF orientation is ignored, as torchvision's ImageFolder and the released code do. 16-bit grey is scaled to 8 bits.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # opening a pipe would wait for a writer
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if expected is not None and found.st_size != expected:
            raise ValueError(f"replaced after the data set was listed: {found.st_size} bytes, not {expected}")
        with Image.open(file) as image:
            return fit(image, longest)


def fit(image: Image.Image, longest: int) -> np.ndarray:
    """The pixels of an open image, as `decode` returns them."""
    ratio = min(1.0, longest / max(image.size))
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    image.draft(None, size)
    small = _rgb(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=None)
    return np.array(small).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    """8 bits per channel; an alpha channel is dropped, as torchvision's ImageFolder does.

    Raises ValueError on 32-bit integers and floats: which value is white is not stated in the file, and PIL would clip.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # PIL's own conversion saturates
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no defined white; convert it to 8 or 16 bits")
    elif image.mode == "P":
        image.info.pop("transparency", None)  # PIL would warn; the colours are the same
    return image.convert("RGB")
