"""The drawn textures: what the demo learns from."""

from __future__ import annotations

import numpy as np

from jigclu.config import DATASETS, DataConfig
from jigclu.data.canvases import open_dataset
from jigclu.data.sources import textures


def data(split: str, count: int = 100) -> list[np.ndarray]:
    return [textures.texture(index, split, 48)[0] for index in range(count)]


def test_a_texture_is_the_same_whenever_it_is_drawn_and_in_no_other_split() -> None:
    assert DATASETS["textures"].version == str(textures.VERSION) == "1"
    first = data("train")
    np.testing.assert_array_equal(first[::-1], [textures.texture(i, "train", 48)[0] for i in reversed(range(100))])
    assert len({image.tobytes() for image in first + data("val")}) == 200


def test_the_data_set_has_as_many_balanced_images_as_the_config_says() -> None:
    whole = open_dataset(DataConfig(name="textures", canvas=32, train_images=30, val_images=20), "train")
    assert len(whole) == 30 and whole.classes == list(textures.KINDS)
    assert np.bincount(whole.labels).tolist() == [3] * 10
    assert whole[7].label == 7 and (whole[7].canvas.numpy() == textures.texture(7, "train", 32)[0]).all()


def test_the_mean_colour_tells_the_place_and_not_the_image() -> None:
    """Patches of one image must not be matched by their colour alone; a tint that all images share tells the place."""
    quarters = np.array([[part.mean((1, 2)) for part in _quarters(image.astype(float))] for image in data("train")])
    quarters -= quarters.mean(2, keepdims=True)  # (images, 4, 3): colour without brightness
    own = quarters - quarters.mean(0)
    assert own.mean(1).std(0).mean() < own.std(1).mean()  # of an image's colours, those of its places differ more
    places = quarters.mean(0)
    gaps = [abs(places[a] - places[b]).max() for a in range(4) for b in range(a)]
    assert min(gaps) > 10


def _quarters(image: np.ndarray) -> list[np.ndarray]:
    half = image.shape[1] // 2
    return [
        image[:, rows, columns]
        for rows in (slice(half), slice(half, None))
        for columns in (slice(half), slice(half, None))
    ]
