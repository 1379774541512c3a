"""Procedural scenes: an image with boxes from an index alone, so tests and scale `smoke` need no data. numpy only.

A scene is a textured background, one large object whose kind (a shape with its own surface pattern) is the class, and
up to two clearly smaller objects of random kinds. Colours are random for every object and background, so a class shows
in shape and pattern only. Everything but the pixel noise is drawn in fractions of the image side: the same index is the
same scene at every size. Random numbers come from Philox keyed by (version, split, index): no state, no order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = (
    "dotted disc",
    "spoked ring",
    "striped square",
    "checked triangle",
    "rimmed cross",
    "plain star",
    "checked lozenge",
    "striped ellipse",
    "banded half-disc",
    "dotted hexagon",
)
VERSION = 1  # the version of `scenes` and `coco_scenes` in the config: raise all three when a scene changes
_SPLITS = {"train": 0, "val": 1}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Array = np.ndarray
_TAU = 2 * np.pi


@dataclass(frozen=True)
class Layer:
    """One object. All masks are crops of the image at `rows`, `columns`."""

    kind: int
    rows: slice
    columns: slice
    alpha: Array  # (h, w) float32 in [0, 1], antialiased coverage
    colour: Array  # (3, h, w) float32 in [0, 1]
    visible: Array  # (h, w) bool: covered, and not hidden by another object

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, upper, right, lower) in pixel edges, tight to what is visible."""
        across, down = np.flatnonzero(self.visible.any(0)), np.flatnonzero(self.visible.any(1))
        left, upper = self.columns.start, self.rows.start
        return left + across[0], upper + down[0], left + across[-1] + 1, upper + down[-1] + 1


def scene(index: int, split: str, size: int) -> tuple[Array, int, Array, Array]:
    """Scene `index` of `split` ("train" or "val") at `size` pixels.

    Returns the image (3, size, size) uint8, its label (= index % 10, the kind of the largest object), the boxes
    (k, 4) float32 xyxy in pixel edges and their kinds (k,) int64; k is 1 to 3 and the main object comes first.
    """
    rng = generator(index, split)
    background, layers = compose(rng, index % len(KINDS), size)
    image = paint(background, layers)
    image += 0.03 * (rng.random((size, size), dtype=np.float32) - 0.5)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    boxes = np.array([layer.box for layer in layers], np.float32)
    return pixels, index % len(KINDS), boxes, np.array([layer.kind for layer in layers], np.int64)


def generator(index: int, split: str) -> np.random.Generator:
    """The random numbers of one scene. train and val have different keys, so they share no image."""
    return np.random.Generator(np.random.Philox(key=[VERSION << 32 | _SPLITS[split], index]))


def compose(rng: np.random.Generator, kind: int, size: int) -> tuple[Array, list[Layer]]:
    """The background (3, size, size) float32 in [0, 1] and the objects on it, the main object first (and in front)."""
    luma = rng.uniform(0.1, 0.9)
    background = _background(rng, luma, size)
    radius = rng.uniform(0.26, 0.42)
    slack = 0.5 - 0.85 * radius
    circles = [(0.5 + rng.uniform(-slack, slack), 0.5 + rng.uniform(-slack, slack), radius)]
    free = np.ones((size, size), bool)
    layers = [_layer(rng, kind, circles[0], luma, free)]
    for _ in range(rng.integers(3)):
        small = radius * rng.uniform(0.28, 0.42)
        candidates = rng.uniform(small, 1 - small, (8, 2))
        gaps = [min(np.hypot(x - a, y - b) - r for a, b, r in circles) for x, y in candidates]
        x, y = candidates[int(np.argmax(gaps))]
        layer = _layer(rng, int(rng.integers(len(KINDS))), (x, y, small), luma, free)
        if layer.visible.sum() > max(3, 0.5 * (layer.alpha > 0.5).sum()):
            circles.append((x, y, small))
            layers.append(layer)
            free[layer.rows, layer.columns] &= ~layer.visible
    return background, layers


def paint(background: Array, layers: list[Layer]) -> Array:
    """The objects over the background, the first in front: (3, size, size) float32 in [0, 1]."""
    image = background.copy()
    for layer in reversed(layers):
        part = image[:, layer.rows, layer.columns]
        part += layer.alpha * (layer.colour - part)
    return image


def _colour(rng: np.random.Generator, luma: float) -> Array:
    """A random colour of approximately that luma, (3, 1, 1) float32."""
    colour = rng.random(3, dtype=np.float32)
    return np.clip(colour + (luma - colour @ _LUMA), 0, 1).astype(np.float32)[:, None, None]


def _background(rng: np.random.Generator, luma: float, size: int) -> Array:
    """Gradient, stripes, checks or smooth noise between two colours of similar luma, unevenly lit."""
    style, angle, frequency = rng.integers(4), rng.uniform(0, _TAU), rng.uniform(3, 9)
    phase = rng.uniform(0, _TAU, 2).astype(np.float32)
    grid = rng.random((7, 7), dtype=np.float32)
    first, second = _colour(rng, luma), _colour(rng, float(np.clip(luma + rng.uniform(-0.15, 0.15), 0, 1)))
    light = rng.uniform(-0.25, 0.25, 2).astype(np.float32)

    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = axis[None, :], axis[:, None]
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    along, across = x * cos + y * sin, y * cos - x * sin
    if style == 0:
        mix = 0.5 + 0.7 * along
    elif style == 1:
        mix = 0.5 + 0.5 * np.sin(_TAU * frequency * along + phase[0])
    elif style == 2:
        pitch = _TAU * frequency / 2
        mix = np.clip(0.5 + 2 * np.sin(pitch * along + phase[0]) * np.sin(pitch * across + phase[1]), 0, 1)
    else:
        weights = np.maximum(0, 1 - np.abs((axis[:, None] + 0.5) * 6 - np.arange(7, dtype=np.float32)))
        mix = weights @ grid @ weights.T  # the grid, interpolated linearly
    image: Array = (first + mix * (second - first)) * (1 + light[0] * x + light[1] * y)
    return image


def _layer(rng: np.random.Generator, kind: int, circle: tuple[float, ...], luma: float, free: Array) -> Layer:
    """An object of `kind` at (x, y, radius), fractions of the side; `free` (size, size): pixels not covered yet."""
    size = len(free)
    x, y, radius = (float(value) * size for value in circle)
    angle, frequency = rng.uniform(0, _TAU), rng.uniform(0.85, 1.2)
    # Luma wraps around at 1, so a shift by 0.3 to 0.7 is a difference of at least 0.3: object and pattern are visible.
    own = (luma + rng.uniform(0.3, 0.7)) % 1
    first, second = _colour(rng, own), _colour(rng, (own + rng.uniform(0.3, 0.7)) % 1)

    reach = 1.2 * radius
    rows, columns = (slice(max(0, int(c - reach)), min(size, int(c + reach) + 2)) for c in (y, x))
    across = ((np.arange(columns.start, columns.stop) + 0.5 - x) / radius).astype(np.float32)[None, :]
    down = ((np.arange(rows.start, rows.stop) + 0.5 - y) / radius).astype(np.float32)[:, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = across * cos + down * sin, down * cos - across * sin
    distance, pattern = _surface(kind, u, v, np.float32(frequency))
    alpha = np.clip(0.5 - distance * np.float32(radius), 0, 1)
    colour = first + pattern * (second - first)
    return Layer(kind, rows, columns, alpha, colour, (alpha > 0.5) & free[rows, columns])


def _surface(kind: int, u: Array, v: Array, f: np.float32) -> tuple[Array, Array]:
    """Signed distance (negative inside, unit: radius) and pattern in [0, 1] at (u, v); `f` scales the pattern."""
    rho = np.sqrt(u * u + v * v)
    match KINDS[kind]:
        case "dotted disc":
            return rho - 0.95, _dots(u, v, f)
        case "spoked ring":
            return np.abs(rho - 0.74) - 0.28, _hard(np.sin(9 * np.arctan2(v, u)))
        case "striped square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.82, _hard(np.sin(8 * f * u))
        case "checked triangle":
            return _polygon(u, v, rho, 3, 1.2), _checks(u, v, f)
        case "rimmed cross":
            a, b = np.abs(u), np.abs(v)
            distance = np.minimum(np.maximum(a - 1, b - 0.36), np.maximum(a - 0.36, b - 1))
            return distance, _hard(8 * (distance + 0.16))
        case "plain star":
            return _polygon(u, v, rho, 5, 1.15, 0.5), np.zeros_like(rho)
        case "checked lozenge":
            return np.abs(u) * 0.88 + np.abs(v) * 0.48 - 0.53, _checks(u, v, f)
        case "striped ellipse":
            return 0.62 * (np.sqrt((u / 0.62) ** 2 + (v / 1.15) ** 2) - 1), _hard(np.sin(8 * f * v))
        case "banded half-disc":
            lifted = v + 0.42
            rho = np.sqrt(u * u + lifted * lifted)
            return np.maximum(rho - 1.1, -lifted), _hard(np.sin(9 * f * rho))
        case _:
            return _polygon(u, v, rho, 6, 1.05), _dots(u, v, f)


def _polygon(u: Array, v: Array, rho: Array, n: int, outer: float, inner: float | None = None) -> Array:
    """Distance to a regular n-gon (with `inner`: an n-pointed star): fold into half a corner, measure to its edge."""
    half = np.pi / n
    inner = outer * float(np.cos(half)) if inner is None else inner
    fold = np.abs((np.arctan2(v, u) + np.pi) % (2 * half) - half)  # 0 at an outer corner, pi/n at an inner one
    rise, run = inner * float(np.sin(half)), outer - inner * float(np.cos(half))
    length = float(np.hypot(rise, run))
    distance: Array = (rho * (np.cos(fold) * rise + np.sin(fold) * run) - outer * rise) / length
    return distance


def _hard(wave: Array) -> Array:
    """A wave in [-1, 1] as two tones with a soft edge between them."""
    return np.clip(0.5 + 2.5 * wave, 0, 1)


def _checks(u: Array, v: Array, f: np.float32) -> Array:
    return _hard(2 * np.sin(6 * f * u) * np.sin(6 * f * v))


def _dots(u: Array, v: Array, f: np.float32) -> Array:
    return _hard(np.cos(9 * f * u) + np.cos(9 * f * v) - 0.7)
