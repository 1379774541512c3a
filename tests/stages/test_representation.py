"""Alignment, uniformity and effective rank against their formulas, and what a probe reports of its encoder."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from jigclu.config import DataConfig, LinearConfig, RuntimeConfig
from jigclu.data.canvases import open_dataset
from jigclu.evaluation import representation
from jigclu.evaluation.extractor import Extractor
from jigclu.evaluation.metrics import accuracy
from jigclu.evaluation.representation import alignment, rankme, represent, uniformity
from jigclu.evaluation.transforms import random_crop
from jigclu.network import Backbone
from jigclu.stages import linear

SCENES = DataConfig(name="scenes", canvas=32, train_images=60, val_images=40)
PROBE = LinearConfig(
    data=SCENES, backbone="resnet18", image_size=32, resize=36, batch_size=16, epochs=1, views=1,
    runtime=RuntimeConfig(workers=0, threads=1, device="cpu"),
)  # fmt: skip


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_formulas_by_brute_force() -> None:
    rs = np.random.RandomState(0)
    first, second = rs.standard_normal((700, 6)), rs.standard_normal((700, 6))  # more than one chunk
    pairs = [np.sum((u - v) ** 2) for u, v in zip(unit(first), unit(second), strict=True)]
    assert alignment(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(np.mean(pairs), rel=1e-12)
    rows = unit(first)
    kernel = [np.exp(-2 * np.sum((rows[i] - rows[j]) ** 2)) for i, j in itertools.combinations(range(700), 2)]
    assert uniformity(torch.from_numpy(first)) == pytest.approx(np.log(np.mean(kernel)), rel=1e-9)
    values = np.linalg.svd(first, compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert rankme(torch.from_numpy(first)) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-9)


def test_the_ends_of_their_ranges() -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert alignment(rows, 3 * rows) == pytest.approx(0) and alignment(rows, -rows) == pytest.approx(4)
    assert uniformity(rows[:1].expand(20, -1)) == pytest.approx(0, abs=1e-9) and uniformity(rows[:1]) == 0
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8)
    assert rankme(rows[:1] * torch.rand(30, 1)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.eye(8)) == pytest.approx(8, rel=1e-4) and rankme(torch.zeros(5, 3)) == pytest.approx(
        1, abs=1e-4
    )


@torch.no_grad()
def test_an_encoder_is_measured_on_the_features_that_the_docstrings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole splits, then at most so many images: which is said beside the numbers."""
    torch.manual_seed(0)
    extractor = Extractor(Backbone("resnet18"), PROBE, torch.device("cpu"))
    train, val = open_dataset(SCENES, "train"), open_dataset(SCENES, "val")
    features, truth = extractor.test_features(val)
    found = represent(extractor, PROBE, train, val, features, truth, 5)
    bank, labels = extractor.test_features(train)
    scores = representation.vote(features, bank, labels, 10, 20, 0.07)
    canvas = torch.stack([val[index].canvas for index in range(40)])
    first, second = (
        extractor(random_crop(PROBE, canvas, torch.full((40, 2), 32), torch.arange(40), 5, view)) for view in (0, 1)
    )
    assert torch.equal(found.bank, bank)
    assert found.metrics["knn_top1"] == accuracy(scores, truth)["top1"]
    assert found.metrics["alignment"] == pytest.approx(alignment(first, second), rel=1e-3)
    assert found.metrics["uniformity"] == uniformity(features) and found.metrics["rankme"] == rankme(features)
    assert found.images == {"knn_top1": 60, "alignment": 40, "uniformity": 40, "rankme": 40}
    for name, limit in (("KNN_IMAGES", 30), ("ALIGNMENT_IMAGES", 20), ("PAIR_IMAGES", 10)):
        monkeypatch.setattr(representation, name, limit)
    few = represent(extractor, PROBE, train, val, features, truth, 5)
    assert few.images == {"knn_top1": 30, "alignment": 20, "uniformity": 10, "rankme": 10}
    assert few.bank.shape == (30, 512)


def test_a_collapsed_encoder_is_named_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def collapsed(self: Extractor, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 512) + torch.rand(len(images), 1)

    with caplog.at_level(logging.WARNING, "jigclu"):
        linear.run(PROBE, tmp_path / "random")
    assert "collapsed" not in caplog.text
    monkeypatch.setattr(Extractor, "__call__", collapsed)
    with caplog.at_level(logging.WARNING, "jigclu"):
        result = linear.run(PROBE, tmp_path / "constant")
    assert "collapsed: the val features have an effective rank (RankMe) of 1.0" in caplog.text
    assert result["metrics"]["rankme"] == pytest.approx(1, abs=1e-3)
