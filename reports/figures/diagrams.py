"""The paper's Figures 2 and 6, drawn anew with the sizes of a job that was run: vector diagrams, no pyplot.

Coordinates: 0 to 100 from left to right, in the same unit downwards, so that squares are square.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from matplotlib.transforms import Affine2D

from reports.figures.style import FAINT, INK, MEASURED, PRINTED, WIDTH, save, style

SHALLOW = ("resnet10", "resnet18", "resnet34")  # 512 channels in the last feature map; the deeper ones have 2048
IMAGES = ("#0072b2", "#e69f00", "#009e73")  # a colour per image: which image a patch came from
Box = tuple[float, float, float, float]  # left, upper, width, height


class Sizes:
    """Sizes in the pipeline by a pretraining's parameters (as in MLflow, text). Missing ones have the schema's defaults."""

    def __init__(self, params: Mapping[str, str]):
        self.image = int(params.get("image_size", 224))
        self.m = int(params.get("method.m", 2))
        self.dim = int(params.get("method.dim", 128))
        self.backbone = params.get("backbone", "resnet50")
        self.channels = 512 if self.backbone in SHALLOW else 2048
        self.map = math.ceil(self.image / 32)  # a ResNet's stride is 32
        self.enlarged = math.ceil(self.map / self.m) * self.m


def pipeline(params: Mapping[str, str], kind: str = "svg") -> bytes:
    """Figure 2: montages -> backbone -> feature map -> decouple -> a vector per patch -> two branches, from top to bottom."""
    sizes = Sizes(params)
    side, up, m = sizes.map, sizes.enlarged, sizes.m
    with style():
        figure, axes = _canvas(height=148)
        patches = [colour for colour in IMAGES for _ in range(m * m)]
        random.Random(1).shuffle(patches)
        for position in range(len(IMAGES)):
            _montage(axes, (2 + 21 * position, 1, 18, 18), m, patches[position * m * m :])
        _text(
            axes,
            66,
            10,
            f"n montages of {m} × {m} patches,\n{sizes.image} × {sizes.image} pixels;\none colour per image",
        )
        _arrow(axes, (32, 20), (32, 27))
        _part(axes, (12, 28, 40, 9), f"backbone: {sizes.backbone.replace('resnet', 'ResNet-')}")
        _arrow(axes, (32, 38), (32, 44))
        _grid(axes, (24, 45, 16, 16), side)
        _text(axes, 66, 53, f"n feature maps,\n{side} × {side} × {sizes.channels}")
        _arrow(axes, (32, 62), (32, 67))
        _part(axes, (12, 68, 40, 9), "decouple: no parameters")
        enlarge = f"enlarge to {up} × {up} (bilinear)" if up != side else f"{side} is already a multiple of {m}"
        _text(axes, 66, 72.5, f"{enlarge};\naverage to {m} × {m}")
        _arrow(axes, (32, 78), (32, 83))
        _vectors(axes, (16, 84, 32, 9), m)
        _text(axes, 66, 88.5, f"n·{m}·{m} vectors\nof {sizes.channels}")
        _branches(axes, sizes)
        return save(figure, kind)


def _branches(axes: Axes, sizes: Sizes) -> None:
    for middle, start, part, makes, loss in (
        (24, 26, "MLP", f"z: {sizes.dim} numbers per patch", "clustering loss\n(Eq. 1, 2)"),
        (76, 40, "FC", f"l: {sizes.m * sizes.m} logits per patch", "location loss\n(Eq. 3)"),
    ):
        _arrow(axes, (start, 94), (middle, 101))
        _part(axes, (middle - 10, 102, 20, 8), part)
        axes.text(middle, 115, makes, ha="center", va="center")
        _arrow(axes, (middle, 118), (middle, 123))
        axes.text(middle, 128.5, loss, ha="center", va="center", weight="bold")
        _arrow(axes, (middle, 133), (middle + (12 if middle < 50 else -12), 140))
    axes.text(50, 144, "loss = α · clustering + β · location (Eq. 4)", ha="center", va="center")


def augmentation(params: Mapping[str, str], kind: str = "svg") -> bytes:
    """Figure 6: an image, its patches, each augmented separately, and the montage that they go into, from top to bottom."""
    m = Sizes(params).m
    with style():
        figure, axes = _canvas(height=104)
        _scene(axes, (0, 0, 100, 100), (4, 2, 30, 30), PALETTES[0])
        _text(axes, 4, 36, "image", side="left")
        _arrow(axes, (36, 17), (62, 17))
        axes.text(49, 12, "split", ha="center", va="center", weight="bold")
        step, part = 34 / m, 30 / m
        for position in range(m * m):
            row, column = divmod(position, m)
            _scene(axes, _cut(position, m), (64 + column * step, 1 + row * step, part, part), PALETTES[0])
            _augmented(axes, position, (64 + column * step, 66 + row * step, part, part), m)
        _text(axes, 64, 36, f"{m} × {m} patches,\nneighbours overlap", side="left", va="top")
        _arrow(axes, (81, 47), (81, 64))
        axes.text(79, 55, "augmentation,\neach separately", ha="right", va="center", weight="bold")
        _arrow(axes, (62, 82), (38, 82))
        axes.text(50, 76, "montage", ha="center", va="center", weight="bold")
        _mixed(axes, (4, 66, 30, 30), m)
        _text(axes, 4, 101, "patches from different images", side="left")
        return save(figure, kind)


# -- parts of a diagram -----------------------------------------------------------------------------------------------
def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, WIDTH * height / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 100)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes


def _text(axes: Axes, x: float, y: float, words: str, side: str = "left", va: str = "center") -> None:
    axes.text(x, y, words, ha=side, va=va, linespacing=1.35)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, color=INK, linewidth=1
    )
    axes.add_patch(arrow)


def _part(axes: Axes, box: Box, words: str) -> None:
    """A part of the network: a rounded box with its name."""
    left, upper, width, height = box
    shape = "round,pad=0,rounding_size=2"
    axes.add_patch(
        FancyBboxPatch((left, upper), width, height, boxstyle=shape, fill=False, edgecolor=INK, linewidth=1.2)
    )
    axes.text(left + width / 2, upper + height / 2, words, ha="center", va="center")


def _grid(axes: Axes, box: Box, count: int) -> None:
    """A feature map: count x count cells."""
    left, upper, width, _ = box
    cell = width / count
    for position in range(count * count):
        row, column = divmod(position, count)
        at = left + column * cell, upper + row * cell
        axes.add_patch(Rectangle(at, cell, cell, facecolor=FAINT, edgecolor=INK, linewidth=0.6))


def _montage(axes: Axes, box: Box, m: int, colours: list[str]) -> None:
    """m x m patches, each in the colour of its image."""
    left, upper, width, _ = box
    cell = width / m
    for position in range(m * m):
        row, column = divmod(position, m)
        at = left + column * cell + 0.3, upper + row * cell + 0.3
        axes.add_patch(Rectangle(at, cell - 0.6, cell - 0.6, facecolor=colours[position], edgecolor="none"))


def _vectors(axes: Axes, box: Box, m: int) -> None:
    """The patches' vectors as vertical bars: those of one montage, and dots for the others."""
    left, upper, width, height = box
    count = min(m * m, 9)
    for position in range(count):
        at = left + position * width / (count + 1), upper
        axes.add_patch(Rectangle(at, width / (count + 1) * 0.55, height, facecolor=MEASURED, edgecolor="none"))
    axes.text(left + width, upper + height / 2, "…", ha="right", va="center")


# A scene of four colours (sky, sun, far hill, near hill): original, and after colour jitter and grayscale.
PALETTES = (
    ("#56b4e9", "#f0e442", "#009e73", "#0b6b50"),
    ("#8fd0f5", "#fff59a", "#4fc79f", "#3b9b80"),
    ("#cc79a7", "#ffd9a0", "#8a5aa8", "#5b3a80"),
    ("#a9a9a9", "#dddddd", "#7d7d7d", "#585858"),
    ("#2f6f9f", "#d9b400", "#0a5c46", "#063c2e"),
)


def _scene(axes: Axes, crop: Box, box: Box, palette: tuple[str, ...], flipped: bool = False) -> None:
    """The part `crop` of the scene (0 to 100 in both directions), stretched over `box`, mirrored if `flipped`."""
    left, upper, width, height = box
    frame = Rectangle((left, upper), width, height, facecolor=palette[0], edgecolor=PRINTED, linewidth=0.6)
    axes.add_patch(frame)
    fit = Affine2D().translate(-crop[0], -crop[1]).scale(width / crop[2], height / crop[3])
    if flipped:
        fit = fit.scale(-1, 1).translate(width, 0)
    placed = fit.translate(left, upper) + axes.transData
    shapes = (
        Circle((27, 26), 13, facecolor=palette[1]),
        Polygon([(0, 100), (0, 70), (35, 48), (62, 66), (100, 30), (100, 100)], facecolor=palette[2]),
        Polygon([(0, 100), (0, 88), (45, 72), (100, 84), (100, 100)], facecolor=palette[3]),
    )
    for shape in shapes:
        shape.set_edgecolor("none")
        shape.set_transform(placed)
        axes.add_patch(shape)
        shape.set_clip_path(frame)


def _cut(position: int, m: int) -> Box:
    """The box of the scene's patch; neighbours overlap."""
    side = 130 / m
    left, upper = (min(max(100 / m * at - 15 / m, 0), 100 - side) for at in (position % m, position // m))
    return left, upper, side, side


def _augmented(axes: Axes, position: int, box: Box, m: int) -> None:
    """The scene's patch after its own crop, flip and colour change."""
    left, upper, side, _ = _cut(position, m)
    crop = (left + side * 0.12 * (position % 3), upper + side * 0.08 * (position % 2), side * 0.7, side * 0.7)
    _scene(axes, crop, box, PALETTES[1 + position % (len(PALETTES) - 1)], flipped=position % 2 == 0)


def _mixed(axes: Axes, box: Box, m: int) -> None:
    """A montage: the scene's first patch at another position, and patches of other images as plain colours."""
    left, upper, width, _ = box
    cell = width / m
    for position in range(m * m):
        row, column = divmod(position, m)
        at = (left + column * cell, upper + row * cell, cell, cell)
        if position == m * m - 2:
            _augmented(axes, 0, at, m)
        else:
            colour = IMAGES[position % len(IMAGES)]
            axes.add_patch(Rectangle(at[:2], cell, cell, facecolor=colour, edgecolor=PRINTED, linewidth=0.6))
