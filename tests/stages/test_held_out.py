"""A probe's rate chosen on a held-out tenth of train, its standardised features, and which val images are right."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.stop import Killed, steady
from torch import Tensor

from jigclu.config import ConfigError, DataConfig, KnnConfig, LinearConfig, RuntimeConfig, identity, parse
from jigclu.data.canvases import CanvasDataset, open_dataset
from jigclu.evaluation.metrics import accuracy
from jigclu.evaluation.samples import at_most, held_out_tenth
from jigclu.job_folder import JobFolder
from jigclu.stages import knn, linear
from jigclu.stages.encoders import fresh_classifier
from jigclu.training import interrupt
from jigclu.training.session import Session

SCENES = DataConfig(name="scenes", canvas=32, train_images=200, val_images=100)
RUNTIME = RuntimeConfig(workers=0, threads=1, device="cpu", log_every=1)
PROBE = LinearConfig(
    data=SCENES, backbone="resnet18", image_size=32, resize=36, batch_size=64, runtime=RUNTIME, epochs=3,
    milestones=(0.5,), lr=0.03, other_lrs=(0.001, 3.0), views=1, standardize=True, selection="held_out",
)  # fmt: skip


def changed(**fields: Any) -> LinearConfig:
    return PROBE.model_copy(update=fields)


def trained(config: LinearConfig, folder: Path, train: CanvasDataset | None = None) -> linear.Probe:
    """The Probe after the steps of `linear.run`."""
    train, val = train or open_dataset(config.data, "train"), open_dataset(config.data, "val")
    probe = linear.Probe(config, Session(folder, config.runtime), train, val)
    for epoch in range(probe.epoch, config.epochs):
        probe.train_epoch(epoch)
    return probe


def flat(head: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])


def bits(folder: JobFolder) -> np.ndarray:
    """The val images that are right, as a reader of a job folder finds them."""
    packed = np.frombuffer((folder.path / "correct.bits").read_bytes(), np.uint8)
    return np.unpackbits(packed, count=folder.result["val_images"])


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> linear.Probe:
    found = trained(PROBE, tmp_path_factory.mktemp("probe"))
    found.finish()
    return found


# -- the samples ------------------------------------------------------------------------------------------------------
def test_a_tenth_of_each_class_is_held_out_by_the_seed() -> None:
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(5), (100, 34, 20, 3, 1)))
    held = held_out_tenth(labels, 7).numpy()
    assert np.bincount(labels[held], minlength=5).tolist() == [10, 3, 2, 1, 0]
    assert (held == held_out_tenth(labels, 7).numpy()).all() and (held != held_out_tenth(labels, 8).numpy()).any()


def test_a_limited_sample_has_as_many_of_each_class() -> None:
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(4), (50, 50, 50, 5)))
    chosen = at_most(labels, 65, 3)
    assert chosen == sorted(set(chosen)) and np.bincount(labels[chosen]).tolist() == [20, 20, 20, 5]
    assert chosen == at_most(labels, 65, 3) != at_most(labels, 65, 4)
    assert at_most(labels, 155, 3) == list(range(155))


# -- the choice -------------------------------------------------------------------------------------------------------
def test_the_rate_that_is_best_on_the_held_out_tenth_is_reported_at_its_last_epoch(probe: linear.Probe) -> None:
    result = probe.session.folder.result
    by_lr, lr = result["by_lr"], result["lr"]
    held = held_out_tenth(probe.train.labels, probe.seed).nonzero().flatten().tolist()
    features, labels = probe.extractor.test_features(probe.train, held)
    assert len(labels) == 20 and np.bincount(labels).tolist() == [2] * 10
    with torch.no_grad():
        for rate, selector in zip(("0.03", "0.001", "3"), probe.selectors, strict=True):
            scores = selector((features - probe.moments[0]) / probe.moments[1])
            assert accuracy(scores, labels)["top1"] == by_lr[rate]["held_out_top1"]
    assert by_lr[f"{lr:g}"]["held_out_top1"] == max(numbers["held_out_top1"] for numbers in by_lr.values())
    metrics, curve = result["metrics"], [line for line in probe.session.folder.metrics() if "top1" in line]
    assert metrics["top1"] == metrics["last_top1"] == curve[-1][f"top1.lr{lr:g}"]
    assert metrics["best_top1"] == max(line[f"top1.lr{lr:g}"] for line in curve)
    assert result["selection"] == "held out" and 0 <= metrics["knn_top1"] <= 100 and metrics["rankme"] > 1


def test_the_reported_head_is_trained_on_all_of_train(probe: linear.Probe, tmp_path: Path) -> None:
    alone = trained(changed(selection="given", other_lrs=()), tmp_path)
    assert torch.equal(flat(probe.heads[0]), flat(alone.heads[0]))


def test_selectors_learn_from_the_rest_of_train_only(probe: linear.Probe) -> None:
    """By hand: the same batches without the held-out images, from the same start."""
    head = fresh_classifier(512, 10, probe.seed)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.03, momentum=0.9)
    held = held_out_tenth(probe.train.labels, probe.seed)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.03 if epoch < 2 else 0.003  # the milestone: round(0.5 * 3)
        for features, labels, indices in probe._epoch_features(epoch, 0):
            kept = ~held[indices]
            optimizer.zero_grad()
            F.cross_entropy(head(features[kept]), labels[kept]).backward()
            optimizer.step()
    torch.testing.assert_close(flat(head), flat(probe.selectors[0]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(flat(probe.heads[0]), flat(probe.selectors[0]), rtol=1e-2, atol=1e-3)


def test_val_chooses_nothing(probe: linear.Probe) -> None:
    """Whatever val's labels are, the same rate is reported."""
    order, truth = probe.rank(), probe.truth
    probe.truth = (truth + 3) % 10
    try:
        assert probe.rank() == order
    finally:
        probe.truth = truth


def test_a_weight_decay_is_chosen_with_the_rate(tmp_path: Path) -> None:
    config = changed(other_lrs=(0.001,), weight_decay=0.0, other_weight_decays=(0.5,))
    probe = trained(config, tmp_path)
    assert [tuple(setting) for setting in probe.settings] == [(0.03, 0.0), (0.03, 0.5), (0.001, 0.0), (0.001, 0.5)]
    assert [group["weight_decay"] for group in probe.optimizer.param_groups] == [0.0, 0.5] * 4
    result, order = probe.finish(), probe.rank()
    assert (result["lr"], result["weight_decay"]) == tuple(probe.settings[order[0]])
    assert list(result["by_lr"]) == ["0.03", "0.001"]
    for rate, pair in (("0.03", (0, 1)), ("0.001", (2, 3))):
        best = min(pair, key=order.index)
        assert result["by_lr"][rate]["weight_decay"] == probe.settings[best].weight_decay
        assert result["by_lr"][rate]["last_top1"] == probe.now[best]["top1"]


@pytest.mark.parametrize(("index", "edge"), [(0, ""), (1, "lr 0.001 is the lowest"), (2, "lr 3 is the highest")])
def test_a_rate_at_the_edge_of_the_sweep_is_named_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, index: int, edge: str
) -> None:
    probe = trained(changed(epochs=1), tmp_path)
    order = probe.rank()
    monkeypatch.setattr(probe, "rank", lambda: [index, *(other for other in order if other != index)])
    with caplog.at_level(logging.WARNING, "jigclu"):
        probe.finish()
    said = [record.getMessage() for record in caplog.records if "of those tried" in record.getMessage()]
    assert [line.split(" of those tried: a better one may lie outside")[0] for line in said] == ([edge] if edge else [])


def test_weight_decays_without_a_choice_and_classes_of_one_image_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^linear: other_weight_decays: only with selection: held_out") as refused:
        parse("linear", {"other_weight_decays": [0.1]})
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"held_out is not|is not a valid choice; valid: given, held_out"):
        parse("linear", {"selection": "val"})
    few = SCENES.model_copy(update={"train_images": 10})
    with pytest.raises(ConfigError, match="a class with at least two images in train; valid here: given"):
        linear.run(changed(data=few), tmp_path)


def test_the_settings_leave_the_ids_of_older_jobs_alone() -> None:
    assert not {"standardize", "selection", "other_weight_decays"} & identity(LinearConfig()).keys()
    assert {"standardize", "selection"} <= identity(PROBE).keys()


# -- standardised features --------------------------------------------------------------------------------------------
def test_features_are_standardised_by_train_and_constant_dimensions_stay_finite(probe: linear.Probe) -> None:
    bank, _ = probe.extractor.test_features(probe.train)
    scaled = probe._scaled(bank).double()
    torch.testing.assert_close(scaled.mean(0), torch.zeros(512, dtype=torch.float64), atol=1e-4, rtol=0)
    varies = (bank.std(0, correction=0) > 0).double()  # no image of train activates the others
    assert 0 < varies.sum() < 512
    torch.testing.assert_close(scaled.std(0, correction=0), varies, atol=1e-4, rtol=0)
    mean, deviation = linear.moments(torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]]))
    assert mean.tolist() == [2.0, 5.0, 0.0] and deviation.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(probe.truth_features, probe.extractor.test_features(probe.val)[0])  # of the figures: as they are


# -- an interruption ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("views", [None, 1])
def test_an_interrupted_choice_ends_as_uninterrupted(
    tmp_path: Path, stop_at: dict[int, str], views: int | None
) -> None:
    """Stopped in mid-epoch, stopped at an epoch's end, and killed after its last checkpoint."""
    config, folder = changed(views=views, other_lrs=(3.0,)), JobFolder(tmp_path / "broken")
    whole = trained(config, tmp_path / "whole")
    wanted = whole.finish()
    stop_at.update({6: "stop", 8: "stop", 11: "kill"})
    for step in (6, 8):
        with pytest.raises(interrupt.Interrupted, match=f"step {step} of 12"):
            trained(config, folder.path)
        interrupt.clear()
    with pytest.raises(Killed):
        trained(config, folder.path)
    probe = trained(config, folder.path)
    for actual, theirs in zip((*probe.heads, *probe.selectors), (*whole.heads, *whole.selectors), strict=True):
        assert torch.equal(flat(actual), flat(theirs))
    result = probe.finish()
    for name in ("metrics", "by_lr", "lr", "weight_decay", "selection", "measured_on"):
        assert result[name] == wanted[name]
    curves = [[steady(line) for line in job.metrics()] for job in (folder, whole.session.folder)]
    assert curves[0] == curves[1] and (bits(folder) == bits(whole.session.folder)).all()


# -- the images that are right ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("selection", ["given", "held_out"])
def test_a_probes_bits_are_those_of_the_reported_number(tmp_path: Path, selection: str) -> None:
    probe = trained(changed(selection=selection), tmp_path)
    result, right = probe.finish(), bits(probe.session.folder)
    assert len(right) == result["val_images"] == 100 and 100 * right.mean() == pytest.approx(result["metrics"]["top1"])
    if selection == "held_out":
        with torch.no_grad():
            scores = probe.heads[probe.rank()[0]](probe._scaled(probe.truth_features))
        assert right.tolist() == (scores.argmax(1) == probe.truth).tolist()


def test_the_bits_of_knn_are_in_the_order_of_val(tmp_path: Path) -> None:
    config = KnnConfig(data=SCENES, backbone="resnet18", image_size=32, resize=36, runtime=RUNTIME, batch_size=64)
    folder = JobFolder(tmp_path / "knn" / "a")
    knn.run(config, folder.path)
    session = Session(tmp_path / "knn" / "b", RUNTIME)
    extractor = linear.frozen_extractor(config, session)
    scores, _, truth = knn.vote_on_split(extractor, *(open_dataset(SCENES, s) for s in ("train", "val")), 20, 0.07)
    assert bits(folder).tolist() == (scores.argmax(1) == truth).tolist()
    assert json.loads((folder.path / "result.json").read_text())["val_images"] == 100
