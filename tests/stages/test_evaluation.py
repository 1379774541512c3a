"""Evaluation of a frozen encoder: its transforms, accuracy, and the kNN vote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tf
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from jigclu import augment, counter_rng
from jigclu.config import DataConfig, KnnConfig, LinearConfig, RuntimeConfig
from jigclu.data.canvases import open_dataset
from jigclu.data.sources.base import Source
from jigclu.evaluation.extractor import Extractor
from jigclu.evaluation.metrics import accuracy
from jigclu.evaluation.transforms import centre_crop, random_crop
from jigclu.job_folder import JobFolder
from jigclu.network import Backbone
from jigclu.stages import knn

MEAN, STD = torch.tensor(augment.MEAN).view(3, 1, 1), torch.tensor(augment.STD).view(3, 1, 1)
SCENES = DataConfig(name="scenes", canvas=32, train_images=200, val_images=100)
RUNTIME = RuntimeConfig(workers=0, threads=1, device="cpu")
PROBE = LinearConfig(data=SCENES, backbone="resnet18", image_size=32, resize=36, runtime=RUNTIME)
KNN = KnnConfig(data=SCENES, backbone="resnet18", image_size=32, resize=36, runtime=RUNTIME, batch_size=64, k=7)
SHAPES = (
    *((320, 320), (320, 213), (240, 320), (50, 64), (97, 31), (160, 131)),
    *((75, 75), (150, 150), (300, 300), (33, 11), (105, 35)),  # floats would resize these a pixel too small
)


# -- the test transform ------------------------------------------------------------------------------------------------


def on_canvas(image: Image.Image, side: int) -> Tensor:
    """The image in the corner of a canvas, with noise around it that must not be read."""
    canvas = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    canvas[:, : image.height, : image.width] = tf.pil_to_tensor(image)
    return canvas


def decibels(actual: Tensor, theirs: Tensor) -> float:
    """PSNR of two normalised images."""
    return float(-10 * torch.log10(((actual - theirs) * STD).double().square().mean()))


@pytest.fixture(scope="module")
def photograph(imagenette: Path) -> Image.Image:
    path = sorted((imagenette / "imagenette" / "val" / "n03028079").iterdir())[0]
    return Image.open(path).convert("RGB").resize((384, 384), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (146, 128), (36, 32), (64, 64), (40, 39)])
def test_centre_crop_is_torchvisions(photograph: Image.Image, resize: int, size: int) -> None:
    """Any shape, reduced or enlarged, many in one batch."""
    pictures = [photograph.crop((30, 20, 30 + width, 20 + height)) for width, height in SHAPES]
    canvas = torch.stack([on_canvas(picture, 320) for picture in pictures])
    actual = centre_crop(canvas, torch.tensor([(height, width) for width, height in SHAPES]), resize, size)
    reference = Compose([Resize(resize), CenterCrop(size), ToTensor(), Normalize(augment.MEAN, augment.STD)])
    found = {
        shape: decibels(image, reference(picture))
        for shape, image, picture in zip(SHAPES, actual, pictures, strict=True)
    }
    assert min(found.values()) >= 45, found


def test_training_crop_is_torchvisions(photograph: Image.Image) -> None:
    """Only resized crop and flip, anywhere in the image, drawn anew each epoch."""
    sizes = torch.tensor([(120, 160), (160, 90)] * 4)
    pictures = [photograph.crop((0, 0, width, height)) for height, width in sizes.tolist()]
    canvas, indices = torch.stack([on_canvas(picture, 160) for picture in pictures]), torch.arange(8) + 100
    actual = random_crop(PROBE, canvas, sizes, indices, 5, 1)
    boxes = torch.stack((0 * sizes[:, 0], 0 * sizes[:, 0], sizes[:, 1], sizes[:, 0]), 1)[:, None]
    drawn = augment.draw(PROBE, 5, 1, indices, boxes, counter_rng.PROBE, colour=None)
    assert drawn.flip.any() and not drawn.flip.all()
    for picture, image, (left, upper, width, height), flip in zip(
        pictures, actual, drawn.crop.tolist(), drawn.flip, strict=True
    ):
        wanted = tf.normalize(
            tf.to_tensor(tf.resized_crop(picture, upper, left, height, width, [32, 32])), augment.MEAN, augment.STD
        )
        assert decibels(image, tf.hflip(wanted) if flip else wanted) >= 45
    again, later = random_crop(PROBE, canvas, sizes, indices, 5, 1), random_crop(PROBE, canvas, sizes, indices, 5, 2)
    assert torch.equal(again, actual) and not (later == actual).flatten(1).all(1).any()


# -- accuracy and kNN --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_batch_without_readable_images_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of a split may be one broken file."""
    dataset = open_dataset(SCENES.model_copy(update={"val_images": 1001}), "val")
    plain = type(dataset.source).pixels

    def broken(self: Source, index: int, longest: int) -> np.ndarray:
        if index == 1000:
            raise OSError("image file is truncated")
        return plain(self, index, longest)

    monkeypatch.setattr(type(dataset.source), "pixels", broken)
    config = KNN.model_copy(update={"batch_size": 250})
    features, labels = Extractor(Backbone("resnet18"), config, torch.device("cpu")).test_features(dataset)
    assert features.shape == (1000, 512) and labels.shape == (1000,)


def test_accuracy_counts_hits_in_the_top_k() -> None:
    rs = np.random.RandomState(0)
    scores, labels = rs.standard_normal((73, 9)), rs.randint(0, 9, 73)
    ranks = [(scores[i] > scores[i, label]).sum() for i, label in enumerate(labels)]
    wanted = {f"top{k}": 100 * np.mean([rank < k for rank in ranks]) for k in (1, 3, 5)}
    assert accuracy(torch.from_numpy(scores), torch.from_numpy(labels), (1, 3, 5)) == pytest.approx(wanted, abs=1e-12)
    assert set(accuracy(torch.from_numpy(scores), torch.from_numpy(labels))) == {"top1", "top5"}
    few = accuracy(torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1]]), torch.tensor([1, 2]))
    assert few == {"top1": 50.0, "top5": 100.0}  # three classes: the top five are all


def brute_force_vote(
    queries: np.ndarray, bank: np.ndarray, labels: np.ndarray, classes: int, k: int, temperature: float
) -> np.ndarray:
    """sum over the k nearest of exp(cos / temperature) [label = class], one query at a time."""
    scores = np.zeros((len(queries), classes))
    for i, query in enumerate(queries):
        cosine = [query @ vector / np.linalg.norm(query) / np.linalg.norm(vector) for vector in bank]
        for j in sorted(range(len(bank)), key=lambda j: -cosine[j])[:k]:
            scores[i, labels[j]] += np.exp(cosine[j] / temperature)
    return scores


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (500, 0.2)])
def test_knn_vote_is_the_formula(k: int, temperature: float) -> None:
    rs = np.random.RandomState(k)
    bank, queries, labels = rs.standard_normal((90, 6)), 3 * rs.standard_normal((17, 6)), rs.randint(0, 4, 90)
    actual = knn.vote(torch.from_numpy(queries), torch.from_numpy(bank), torch.from_numpy(labels), 4, k, temperature)
    np.testing.assert_allclose(actual.numpy(), brute_force_vote(queries, bank, labels, 4, k, temperature), rtol=1e-9)


def test_knn_stage_votes_on_the_test_transforms_features(tmp_path: Path) -> None:
    result = knn.run(KNN, tmp_path / "knn" / "a")
    torch.manual_seed(0)
    extractor = Extractor(Backbone("resnet18"), KNN.model_copy(update={"batch_size": 33}), torch.device("cpu"))
    (bank, labels), (queries, truth) = (
        extractor.test_features(open_dataset(SCENES, split)) for split in ("train", "val")
    )
    assert bank.shape == (200, 512) and truth.tolist() == open_dataset(SCENES, "val").labels.tolist()
    votes = brute_force_vote(queries.numpy(), bank.numpy(), labels.numpy(), 10, 7, 0.07)
    assert result["metrics"] == accuracy(torch.from_numpy(votes), truth)
    assert JobFolder(tmp_path / "knn" / "a").result["metrics"] == result["metrics"]
