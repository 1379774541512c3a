"""Random draws: the distribution of augmentation parameters, and the dependencies of counter-based numbers."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from jigclu import augment, counter_rng
from jigclu.augment import HUE, Parameters
from jigclu.config import AugmentConfig, LinearConfig

Box = tuple[int, int, int, int]
WIDE: Box = (10, 20, 230, 220)  # wider than high, yet every area up to 1 has an allowed aspect
THIN: Box = (5, 7, 105, 27)  # so thin that mostly nothing fits in torchvision's ten attempts
SQUARE: Box = (0, 0, 200, 200)
OFFICIAL = AugmentConfig()
IMAGES, PATCHES = 5000, 4
PASS, REJECT = 1e-3, 1e-6
ORDERS = [list(order) for order in itertools.permutations(range(4))]
CROP = ("left", "upper", "width", "height", "area", "aspect", "place x", "place y")


def drawn(
    recipe: AugmentConfig | LinearConfig = OFFICIAL,
    box: Box = WIDE,
    seed: int = 0,
    epoch: int = 0,
    images: int = IMAGES,
) -> Parameters:
    boxes = torch.tensor(box).repeat(images, PATCHES, 1)
    colour = recipe if isinstance(recipe, AugmentConfig) else None
    return augment.draw(recipe, seed, epoch, torch.arange(images), boxes, colour=colour)


@functools.cache
def torchvision_crops(box: Box, scale: tuple[float, float] = (0.2, 1.0)) -> np.ndarray:
    """(20,000, 4) left, upper, width, height in the box by torchvision's own sampler."""
    torch.manual_seed(1)
    image = torch.empty(3, box[3] - box[1], box[2] - box[0])
    rows = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(IMAGES * PATCHES)]
    return np.array([(box[0] + left, box[1] + upper, width, height) for upper, left, height, width in rows])


def crop_statistics(crop: np.ndarray, box: Box) -> dict[str, np.ndarray]:
    """CROP of each row; a crop's x and y are scaled to (0, 1) for any size of the crop."""
    left, upper, width, height = crop.T.astype(float)
    place_x = (left - box[0] + 0.5) / (box[2] - box[0] - width + 1)
    place_y = (upper - box[1] + 0.5) / (box[3] - box[1] - height + 1)
    columns = (left, upper, width, height, width * height, np.log(width / height), place_x, place_y)
    return dict(zip(CROP, columns, strict=True))


def crop_p_values(crop: Tensor, box: Box, scale: tuple[float, float] = (0.2, 1.0)) -> dict[str, float]:
    actual, theirs = crop_statistics(crop.numpy(), box), crop_statistics(torchvision_crops(box, scale), box)
    return {name: stats.ks_2samp(actual[name], theirs[name]).pvalue for name in CROP}


def p_values(parameters: Parameters) -> dict[str, float]:
    """p-values of these draws in WIDE under MoCo v2's list (protocols.md §1.2), one per property."""
    count = len(parameters.flip)
    factors, sigma = parameters.factors.double().numpy(), parameters.sigma.double().numpy()
    jittered = (factors != [1, 1, 1, 0]).any(1)
    values = crop_p_values(parameters.crop, WIDE)
    hits = {"jitter": jittered, "gray": parameters.gray.numpy(), "blur": sigma > 0, "flip": parameters.flip.numpy()}
    for (name, hit), probability in zip(hits.items(), (0.8, 0.2, 0.5, 0.5), strict=True):
        values[name] = stats.binomtest(int(hit.sum()), count, probability).pvalue
    for column, name in enumerate(("brightness", "contrast", "saturation")):
        values[name] = stats.kstest(factors[jittered, column], stats.uniform(0.6, 0.8).cdf).pvalue
    values["hue"] = stats.kstest(factors[jittered, HUE], stats.uniform(-0.1, 0.2).cdf).pvalue
    values["sigma"] = stats.kstest(sigma[sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue
    counts = [int((parameters.order == torch.tensor(order)).all(1).sum()) for order in ORDERS]
    values["order"] = stats.chisquare(counts).pvalue if sum(counts) == count else 0.0
    return values


def test_drawn_parameters_follow_the_official_recipe() -> None:
    values = p_values(drawn())
    assert len(values) == 18 and min(values.values()) > PASS, values


@pytest.mark.parametrize(
    ("promise", "wrong"),
    [
        ("area", {"crop_scale": (0.3, 1.0)}), ("area", {"crop_scale": (0.08, 1.0)}), ("area", {"crop_scale": (0.2, 0.9)}),
        ("aspect", {"crop_ratio": (0.7, 1.4)}), ("aspect", {"crop_ratio": (0.8, 1.25)}),
        ("jitter", {"jitter_probability": 0.77}), ("gray", {"gray_probability": 0.25}), ("blur", {"blur_probability": 0.55}),
        ("flip", {"flip_probability": 0.45}), ("sigma", {"blur_sigma": (0.1, 2.2)}), ("sigma", {"blur_sigma": (0.2, 2.0)}),
        ("brightness", {"brightness": 0.45}), ("contrast", {"contrast": 0.35}), ("saturation", {"saturation": 0.5}),
        ("hue", {"hue": 0.12}),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_rejected(promise: str, wrong: dict[str, object]) -> None:
    values = p_values(drawn(AugmentConfig.model_validate(wrong)))
    assert values[promise] < REJECT
    # The other properties pass: none depends on another one's numbers. (Area, aspect and place are correlated.)
    others = {
        name: value for name, value in values.items() if name != promise and not (promise in CROP and name in CROP)
    }
    assert min(others.values()) > PASS, others


def test_a_wrong_sampler_is_rejected() -> None:
    """Errors that no recipe can cause: operation orders of unequal frequency, crops biased to a corner."""
    right = drawn()
    order = right.order.clone()
    order[: len(order) // 10] = torch.arange(4)
    assert p_values(dataclasses.replace(right, order=order))["order"] < REJECT
    crop = right.crop.clone()
    crop[:, 0] = WIDE[0] + (crop[:, 0] - WIDE[0]) * 9 // 10
    values = p_values(dataclasses.replace(right, crop=crop))
    assert values["place x"] < REJECT and values["place y"] > PASS


@pytest.mark.parametrize("box", [WIDE, THIN, SQUARE, (3, 1, 10, 9)])
@pytest.mark.parametrize("recipe", [AugmentConfig(), LinearConfig()])
def test_crops_are_torchvisions_in_any_box(box: Box, recipe: AugmentConfig | LinearConfig) -> None:
    """Also if no attempt fits and the central crop is used, and in boxes of a few pixels."""
    crop = drawn(recipe, box).crop
    assert (crop[:, :2] >= torch.tensor(box[:2])).all() and (crop[:, 2:] > 0).all()
    assert (crop[:, :2] + crop[:, 2:] <= torch.tensor(box[2:])).all()
    values = crop_p_values(crop, box, recipe.crop_scale)
    assert min(values.values()) > PASS, values
    theirs = torchvision_crops(box, recipe.crop_scale)
    sizes, counts = np.unique(np.concatenate((crop.numpy(), theirs))[:, 2:], axis=0, return_inverse=True)
    both = [np.bincount(half, minlength=len(sizes)) for half in np.split(counts.ravel(), 2)]
    common = np.add(*both) >= 40  # the sizes that are drawn often, width and height together
    if common.sum() > 1:
        assert stats.chi2_contingency([half[common] for half in both]).pvalue > PASS


def test_the_probes_recipe_draws_only_crop_and_flip() -> None:
    parameters = drawn(LinearConfig())
    assert (parameters.factors == torch.tensor([1.0, 1.0, 1.0, 0.0])).all()
    assert not parameters.gray.any() and not parameters.sigma.any()
    assert stats.binomtest(int(parameters.flip.sum()), len(parameters.flip), 0.5).pvalue > PASS


def features(seed: int, epoch: int, images: int = 8000) -> np.ndarray:
    """(images, PATCHES * 14): every drawn parameter. In a square box no two of them should correlate."""
    drawn_here = functools.partial(drawn, box=SQUARE, seed=seed, epoch=epoch, images=images)
    usual, always = drawn_here(), drawn_here(AugmentConfig(jitter_probability=1, blur_probability=1))
    crop = crop_statistics(usual.crop.numpy(), SQUARE)
    jittered = (usual.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    columns = [torch.from_numpy(crop[name]) for name in ("area", "aspect", "place x", "place y")]
    columns += [*always.factors.T, always.sigma, always.order.argmax(1)]
    columns += [jittered, usual.gray, usual.sigma > 0, usual.flip]
    table = torch.stack([column.double() for column in columns], 1).view(PATCHES, images, -1)
    return table.transpose(0, 1).reshape(images, -1).numpy()


def strongest(table: np.ndarray) -> float:
    """The largest correlation of two columns, in standard deviations under independence."""
    correlation = np.corrcoef(table.T)
    np.fill_diagonal(correlation, 0)
    return float(np.abs(correlation).max() * np.sqrt(len(table)))


def test_parameters_patches_images_epochs_and_seeds_are_independent() -> None:
    """No two of 224 columns (14 parameters, 4 patches, next image, epoch and seed) correlate by more than 5 deviations."""
    first = features(0, 0)
    table = np.concatenate((first[:-1], first[1:], features(0, 1)[:-1], features(1, 0)[:-1]), 1)
    assert table.shape[1] == 4 * PATCHES * 14
    assert strongest(table) < 5
    leak = first[:, :1] / first[:, 0].std() + 5 * np.random.RandomState(0).randn(len(first), 1)
    assert strongest(np.concatenate((first, leak), 1)) > 10  # a fifth of one parameter mixed into another is detected


# -- counters ------------------------------------------------------------------------------------------------------------


def rows(parameters: Parameters, count: int, chosen: list[int]) -> list[Tensor]:
    """Every field as (patch, chosen images, ...)."""
    return [
        getattr(parameters, field.name).unflatten(0, (-1, count))[:, chosen] for field in dataclasses.fields(parameters)
    ]


def test_a_samples_parameters_do_not_depend_on_its_batch() -> None:
    def draw(indices: list[int], patches: int = PATCHES) -> Parameters:
        boxes = torch.tensor([[(p, i % 7, 90 + p, 80 + i % 7) for p in range(patches)] for i in indices])
        return augment.draw(OFFICIAL, 3, 2, torch.tensor(indices), boxes, colour=OFFICIAL)

    whole = draw(list(range(64)))
    for indices in ([17], [40, 3, 63], list(range(63, -1, -1)), [5, 5, 9]):
        for actual, wanted in zip(
            rows(draw(indices), len(indices), list(range(len(indices)))), rows(whole, 64, indices), strict=True
        ):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
    fewer = rows(draw([17], patches=2), 1, [0])
    for actual, wanted in zip(fewer, rows(whole, 64, [17]), strict=True):
        torch.testing.assert_close(actual, wanted[:2], rtol=0, atol=0)


def test_every_part_of_key_and_counter_changes_the_numbers() -> None:
    def numbers(seed: int = 7, purpose: int = counter_rng.AUGMENT, epoch: int = 1, index: int = 5) -> Tensor:
        return counter_rng.uniforms(seed, purpose, epoch, torch.tensor([index]), 2, 6)[0]

    base = numbers()
    torch.testing.assert_close(numbers(), base, rtol=0, atol=0)
    others = [
        numbers(seed=8),
        numbers(seed=7 + 2**32),
        numbers(purpose=counter_rng.PROBE),
        numbers(epoch=2),
        numbers(index=6),
        numbers(index=2**31 + 5),
    ]
    everything = torch.cat([base, *others]).flatten()
    assert len(everything.unique()) == len(everything)
    torch.manual_seed(0)  # torch's own generator has no part in it
    torch.testing.assert_close(numbers(), base, rtol=0, atol=0)


def test_uniforms_are_uniform() -> None:
    values = counter_rng.uniforms(0, counter_rng.AUGMENT, 0, torch.arange(2000), 3, 7)
    assert values.shape == (2000, 3, 7) and values.dtype == torch.float64 and values.min() >= 0 and values.max() < 1
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > PASS
    assert len(values.unique()) > 0.9999 * values.numel()  # 32 bits: a couple of 42,000 may meet


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter: str, key: str, wanted: str) -> None:
    """Random123's known-answer vectors for philox4x32-10."""
    c0, c1, c2, c3 = (torch.tensor([int(word, 16)]) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert " ".join(f"{int(word):08x}" for word in counter_rng.philox((c0, c1, c2, c3), (k0, k1))) == wanted


def test_permutations_are_even_and_differ_by_step() -> None:
    def shuffle(step: int, length: int, **changes: int) -> list[int]:
        counted = {"seed": 1, "purpose": counter_rng.SHUFFLE, "epoch": 0, **changes}
        return counter_rng.permutation(step=step, length=length, **counted).tolist()

    for length in (1, 2, 63, 1000):
        assert sorted(shuffle(0, length)) == list(range(length))
    rises = (np.diff(shuffle(0, 100_000)) > 0).sum()
    assert abs(rises - 50_000) < 450  # 5 deviations; keys of few bits tie, and ties rise
    base = shuffle(0, 1000)
    others = [
        shuffle(1, 1000),
        shuffle(0, 1000, epoch=1),
        shuffle(0, 1000, seed=2),
        shuffle(0, 1000, purpose=counter_rng.MONTAGE),
    ]
    assert shuffle(0, 1000) == base
    for first, second in itertools.combinations([base, *others], 2):
        assert sum(a == b for a, b in zip(first, second, strict=True)) < 10  # by chance one in a thousand agrees
        assert abs(stats.spearmanr(first, second).statistic) < 0.16
    counts = np.unique([np.dot(shuffle(step, 4), [64, 16, 4, 1]) for step in range(4800)], return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > PASS
