"""An image file as pixels: RGB, scaled down to fit a canvas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def decode(path: Path, longest: int) -> np.ndarray:
    """(3, h, w) uint8 RGB, scaled down (never up) with PIL's antialiased bilinear so that max(h, w) <= longest.

    A much larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size (`draft`), never smaller than the result.
    EXIF orientation is ignored, as torchvision's ImageFolder and the released code do.
    """
    with Image.open(path) as image:
        return fit(image, longest)


def fit(image: Image.Image, longest: int) -> np.ndarray:
    """The pixels of an open image, as `decode` returns them."""
    ratio = min(1.0, longest / max(image.size))
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    image.draft(None, size)
    small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=None)
    return np.array(small).transpose(2, 0, 1)
