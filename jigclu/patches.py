"""Paper §3.1, the split: an image of any size -> m x m overlapping boxes.

The paper leaves m = 3 and 4 open; they are decided here and nowhere else:

* `extend` stays the same fraction of the image side for every m ("using 0.3 of the original image's side length ...
  All our experiments are trained using this ratio", §5.3). Boxes are clipped at the image's border, so inner patches are larger
  than the corner ones. All are resized to the same patch size afterwards. Two patches then share 69, 65, 55 % of the smaller
  one on average for m = 2, 3, 4. The other reading, the same fraction of the cell (`extend_of: cell`), gives 69, 40, 23 %.
* A patch is floor(224 / m) pixels wide: 112, 74, 56. The montage is m patches wide: 224, 222, 224 pixels.
* The 7 x 7 feature map is interpolated to the next multiple of m: 8, 9, 8 (§3.2, in `network.decouple`).
"""

from __future__ import annotations

Box = tuple[int, int, int, int]


def split_boxes(width: int, height: int, m: int = 2, extend: float = 0.3) -> list[Box]:
    """Split an image into m*m overlapping boxes (paper §3.1).

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        m: patches along each side.
        extend: how far a patch reaches past its cell's inner borders, as a fraction of the image side (the released code's
            cross-ratio; protocols.md §1.1). Neighbours overlap by 2 * extend, which is the x printed in Figure 7.

    Returns:
        m*m boxes (left, upper, right, lower) in pixels, row-major: for m = 2 top-left, top-right, bottom-left, bottom-right.
        Pixels are rounded half to even, as PIL's crop does.

    Raises:
        ValueError: the size, m or extend gives no patches.
    """
    if width < m or height < m or m < 1:
        raise ValueError(f"cannot split {width} x {height} pixels into {m} x {m} patches")
    if not 0 <= extend <= 0.5:
        raise ValueError(f"extend must be in [0, 0.5], not {extend}")
    columns, rows = _spans(width, m, extend), _spans(height, m, extend)
    return [(left, upper, right, lower) for upper, lower in rows for left, right in columns]


def _spans(side: int, m: int, extend: float) -> list[tuple[int, int]]:
    reach = extend * side
    return [
        (
            max(0, round(cell * side // m - reach)) if cell > 0 else 0,
            min(side, round((cell + 1) * side // m + reach)) if cell < m - 1 else side,
        )
        for cell in range(m)
    ]


def patch_size(image_size: int, m: int) -> int:
    """Side in pixels of one square patch in a montage of `image_size` pixels (see the module's note on m = 3)."""
    return image_size // m
