"""Procedural textures: an image from an index alone, filled with one of ten patterns. numpy only, needs no data.

The class is the pattern. Every patch of an image shows it, so a network that learns which patches belong together learns the
classes in minutes. Direction, phase, pitch (7 to 10 periods a side), polarity and contrast are random for every image. Colours
vary inside an image as much as between images, so that they do not tell which patches belong together; only a faint tint that
turns from corner to corner is the same in all images, and tells the place. Everything but the pixel noise is drawn in fractions
of the image side. Random numbers come from Philox keyed by (version, split, index): no state, no order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray

VERSION = 1  # the version of `textures` in the config: raise both when a texture changes
PITCH = (7.0, 10.0)  # periods on an image side
NODES = 7  # of the random colour field, a side
COLOURS, CONTRAST, NOISE = 0.3, (0.45, 0.7), 0.1
BEND = 0.04  # of the image side, how far the pattern is warped
# How much redder, greener and bluer the right edge is than the left one, and the lower edge than the upper one.
ACROSS, DOWN = (np.array(tint, np.float32)[:, None, None] for tint in ((0.32, 0.0, -0.32), (-0.16, 0.32, -0.16)))
_SPLITS = {"train": 0, "val": 1}
_TURN = np.float32(2 * np.pi)


def texture(index: int, split: str, size: int) -> tuple[Array, int]:
    """Texture `index` of `split` ("train" or "val"): the image (3, size, size) uint8 and its label, index % 10."""
    rng = np.random.Generator(np.random.Philox(key=[VERSION << 32 | _SPLITS[split], index]))
    label = index % len(KINDS)
    turn, pitch = rng.uniform(0, 2 * np.pi), rng.uniform(*PITCH)
    shift, phase = rng.uniform(0, 4, 2), rng.uniform(0, 2 * np.pi, 2)
    bend = rng.uniform(-BEND, BEND, 2)
    contrast = np.float32(rng.uniform(*CONTRAST) * rng.choice((-1.0, 1.0)))
    colours = rng.uniform(-COLOURS, COLOURS, (3, NODES, NODES)).astype(np.float32)

    side = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5).astype(np.float32)
    x = side[None, :] + np.float32(bend[0]) * np.sin(_TURN * side + np.float32(phase[0]))[:, None]
    y = side[:, None] + np.float32(bend[1]) * np.sin(_TURN * side + np.float32(phase[1]))[None, :]
    along, across = np.float32(pitch * np.cos(turn)), np.float32(pitch * np.sin(turn))
    u = along * x + across * y + np.float32(shift[0])
    v = along * y - across * x + np.float32(shift[1])

    image = _smooth(colours, side) + 0.5 + contrast * (KINDS[_NAMES[label]](u, v) - 0.5)
    image += ACROSS * side[None, None, :] + DOWN * side[None, :, None]
    image += NOISE * (rng.random((3, size, size), dtype=np.float32) - 0.5)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), label


def _smooth(nodes: Array, side: Array) -> Array:
    """(3, n, n) values at evenly spaced nodes, interpolated linearly to (3, size, size)."""
    last = nodes.shape[-1] - 1
    weights = np.clip(1 - np.abs((side[:, None] + 0.5) * last - np.arange(last + 1, dtype=np.float32)), 0, 1)
    smooth: Array = weights @ nodes @ weights.T
    return smooth


def _edge(value: Array, sharp: float = 3.0) -> Array:
    """0 where the value is negative and 1 where it is positive, with a soft edge."""
    return np.clip(0.5 + sharp * value, 0, 1)


def _wave(u: Array) -> Array:
    return np.sin(_TURN * u)


def _centred(u: Array) -> Array:
    """Distance to the nearest whole number, with its sign: in [-0.5, 0.5]."""
    return u - np.rint(u)


def _stripes(u: Array, v: Array) -> Array:
    return _edge(_wave(u))


def _checks(u: Array, v: Array) -> Array:
    return _edge(2 * _wave(u) * _wave(v))


def _dots(u: Array, v: Array) -> Array:
    return _edge(0.33 - np.hypot(_centred(u), _centred(v)), 8)


def _grid(u: Array, v: Array) -> Array:
    return _edge(0.12 - np.minimum(np.abs(_centred(u)), np.abs(_centred(v))), 8)


def _zigzag(u: Array, v: Array) -> Array:
    return _edge(_wave(u + 1.3 * np.abs(_centred(v))))


def _bricks(u: Array, v: Array) -> Array:
    row = np.rint(1.4 * v)
    joint = np.minimum((0.5 - np.abs(_centred(0.7 * u + 0.5 * (row % 2)))) / 0.7, (0.5 - np.abs(1.4 * v - row)) / 1.4)
    return _edge(joint - 0.09, 10)


def _rings(u: Array, v: Array) -> Array:
    return _edge(_wave(2.2 * np.hypot(_centred(0.5 * u), _centred(0.5 * v))))


def _crosses(u: Array, v: Array) -> Array:
    a, b = np.abs(_centred(0.8 * u)), np.abs(_centred(0.8 * v))
    return _edge(0.12 - np.maximum(np.minimum(a, b), np.maximum(a, b) - 0.27), 8)


def _basket(u: Array, v: Array) -> Array:
    upright = (np.floor(0.6 * u) + np.floor(0.6 * v)) % 2 == 0
    return _edge(_wave(1.8 * np.where(upright, v, u)))


def _scales(u: Array, v: Array) -> Array:
    row = np.floor(1.2 * v)
    return _edge(0.1 - np.abs(np.hypot(_centred(0.9 * u + 0.5 * (row % 2)), 1.2 * v - row) - 0.5), 8)


KINDS: dict[str, Callable[[Array, Array], Array]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "grid": _grid,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "rings": _rings,
    "crosses": _crosses,
    "basket": _basket,
    "scales": _scales,
}
_NAMES = tuple(KINDS)
