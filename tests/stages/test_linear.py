"""The linear probe: independent learning rates, cached views, its upstream, an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.stop import Killed, steady
from torch import Tensor

from jigclu.config import DataConfig, LinearConfig, RuntimeConfig
from jigclu.data.canvases import open_dataset
from jigclu.evaluation.extractor import Extractor
from jigclu.evaluation.transforms import centre_crop, random_crop
from jigclu.job_folder import JobFolder
from jigclu.network import Backbone
from jigclu.stages import linear
from jigclu.stages.encoders import frozen_extractor
from jigclu.training import interrupt
from jigclu.training.checkpoint import save_atomic
from jigclu.training.session import Session, TrainingError

SCENES = DataConfig(name="scenes", canvas=32, train_images=200, val_images=100)
RUNTIME = RuntimeConfig(workers=0, threads=1, device="cpu", log_every=1)
RATES = (1.0, 0.01, 10.0)
REPORTED, OF_ENCODER = ("top1", "top5", "best_top1", "last_top1"), ("knn_top1", "alignment", "uniformity", "rankme")
PROBE = LinearConfig(
    data=SCENES, backbone="resnet18", image_size=32, resize=36, batch_size=64, runtime=RUNTIME,
    epochs=4, milestones=(0.5, 0.75), lr=RATES[0], other_lrs=RATES[1:],
)  # fmt: skip


def trained(config: LinearConfig, folder: Path) -> linear.Probe:
    """The Probe after the steps of `linear.run`, to inspect its heads."""
    train, val = open_dataset(config.data, "train"), open_dataset(config.data, "val")
    probe = linear.Probe(config, Session(folder, config.runtime), train, val)
    for epoch in range(probe.epoch, config.epochs):
        probe.train_epoch(epoch)
    return probe


def weights(probe: linear.Probe, index: int) -> Tensor:
    """(classes, dim + 1): weights and bias of the head of the learning rate at `index`."""
    return torch.cat([parameter.detach().view(10, -1) for parameter in probe.heads[index].parameters()], 1)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> linear.Probe:
    """Three learning rates in one pass."""
    probe = trained(PROBE, tmp_path_factory.mktemp("several"))
    probe.finish()
    return probe


def changed(**fields: Any) -> LinearConfig:
    return PROBE.model_copy(update=fields)


@pytest.mark.parametrize("index", range(3))
def test_each_rate_learns_as_if_it_were_alone(several: linear.Probe, tmp_path: Path, index: int) -> None:
    alone = trained(changed(lr=RATES[index], other_lrs=()), tmp_path)
    assert torch.equal(weights(several, index), weights(alone, 0))
    rate = f"{RATES[index]:g}"
    assert alone.finish()["by_lr"] == {rate: several.session.folder.result["by_lr"][rate]}


def test_the_best_epoch_at_the_configs_rate_is_reported(several: linear.Probe, tmp_path: Path) -> None:
    folder = several.session.folder
    by_lr, epochs = folder.result["by_lr"], [line for line in folder.metrics() if "top1" in line]
    assert [line["step"] for line in epochs] == [4, 8, 12, 16]  # 200 images in batches of 64, the last one kept
    for rate, numbers in by_lr.items():
        curve = [line[f"top1.lr{rate}"] for line in epochs]
        assert (
            numbers["top1"] == max(curve)
            and curve.index(max(curve)) == numbers["epoch"]
            and numbers["last_top1"] == curve[-1]
        )
    assert len({numbers["top1"] for numbers in by_lr.values()}) > 1  # else any rate's would do
    assert any(numbers["top1"] > numbers["last_top1"] for numbers in by_lr.values())
    other = linear.run(changed(lr=RATES[1], other_lrs=(RATES[2], RATES[0])), tmp_path)
    assert other["by_lr"] == by_lr
    for result, rate in ((folder.result, RATES[0]), (other, RATES[1])):
        assert result["lr"] == rate
        assert {name: result["metrics"][name] for name in REPORTED} == {
            name: by_lr[f"{rate:g}"][name] for name in REPORTED
        }
        assert set(result["metrics"]) == {*REPORTED, *OF_ENCODER}


def test_rates_fall_at_the_milestones(several: linear.Probe) -> None:
    assert [group["lr"] for group in several.optimizer.param_groups] == pytest.approx([rate * 0.01 for rate in RATES])


def test_cached_views_learn_as_fresh_crops_do(several: linear.Probe, tmp_path: Path) -> None:
    """With a cached view for every epoch the training is the same; fewer views are cycled through."""
    cached = trained(changed(views=4), tmp_path / "four")
    for index in range(3):  # features of other batches differ in the last bits
        torch.testing.assert_close(weights(cached, index), weights(several, index), rtol=1e-3, atol=1e-3)
    two = trained(changed(views=2), tmp_path / "two")
    assert len(two.views) == 2 and two.steps_per_epoch == cached.steps_per_epoch
    assert torch.equal(two.views[1][0], cached.views[1][0]) and not torch.equal(two.views[0][0], two.views[1][0])
    assert not torch.allclose(weights(two, 0), weights(cached, 0), rtol=1e-2, atol=1e-2)
    assert set(two.finish()["metrics"]) == {*REPORTED, *OF_ENCODER}


def test_a_probe_sees_the_crop_that_its_config_names(tmp_path: Path) -> None:
    """Padded crops of native pixels (protocols.md §2.5), drawn by epoch and image: the features are of exactly those crops."""
    padded = changed(crop="padded", padding=4, views=1, epochs=1, other_lrs=())
    train, val = open_dataset(padded.data, "train"), open_dataset(padded.data, "val")
    probe = linear.Probe(padded, Session(tmp_path, RUNTIME), train, val)
    canvas, first = torch.stack([train[i].canvas for i in range(64)]), torch.arange(64)
    crops = random_crop(padded, canvas, torch.full((64, 2), 32), first, probe.seed, 0)
    assert torch.equal(probe.views[0][0][:64], probe.extractor(crops))
    resized = random_crop(changed(crop="resized"), canvas, torch.full((64, 2), 32), first, probe.seed, 0)
    assert not torch.equal(crops, resized)


def pretrained(store: Path, job: str, seed: int) -> dict[str, Tensor]:
    """A pretraining's folder with an encoder.pt that has distinct weights and running statistics."""
    torch.manual_seed(seed)
    state = Backbone("resnet18").resnet.state_dict()
    state["bn1.running_mean"] += 0.5
    save_atomic(JobFolder(store / "pretrain" / job).create().path / "encoder.pt", state)
    return state


def test_the_probe_starts_from_its_upstream_and_does_not_change_it(tmp_path: Path) -> None:
    state = pretrained(tmp_path, "0123456789ab", 42)
    folder = JobFolder(tmp_path / "linear" / "a").create()
    folder.update_job(upstream=["0123456789ab"], seed=3)
    probe = trained(changed(epochs=1, other_lrs=()), folder.path)
    after = probe.extractor.backbone.resnet.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[key], value) for key, value in state.items())
    assert not any(parameter.requires_grad for parameter in probe.extractor.backbone.parameters())
    reference = Backbone("resnet18").eval()
    reference.resnet.load_state_dict(state)
    val = open_dataset(SCENES, "val")
    with torch.no_grad():
        wanted = reference(centre_crop(torch.stack([val[i].canvas for i in range(8)]), torch.full((8, 2), 32), 36, 32))
    torch.testing.assert_close(probe.truth_features[:8], wanted, rtol=1e-3, atol=1e-4)
    assert folder.job["upstream"] == ["0123456789ab"]


def test_without_upstream_the_weights_are_random_by_seed(tmp_path: Path) -> None:
    def features(name: str, seed: int) -> Tensor:
        JobFolder(tmp_path / "linear" / name).create().update_job(seed=seed)
        session = Session(tmp_path / "linear" / name, RUNTIME)
        return frozen_extractor(PROBE, session).test_features(open_dataset(SCENES, "val"))[0]

    first = features("a", 1)
    assert torch.equal(features("b", 1), first) and not torch.allclose(features("c", 2), first, rtol=0.1)


def test_a_missing_or_damaged_encoder_is_reported(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "linear" / "a").create()
    folder.update_job(upstream=["0123456789ab"])
    with pytest.raises(FileNotFoundError, match="upstream encoder is missing"):
        linear.run(PROBE, folder.path)
    pretrained(tmp_path, "0123456789ab", 0)
    path = tmp_path / "pretrain" / "0123456789ab" / "encoder.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="does not match its digest"):
        linear.run(PROBE, folder.path)
    assert not folder.done


def test_a_changed_backbone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def thawed(*arguments: Any) -> Extractor:
        extractor = frozen_extractor(*arguments)
        extractor.backbone.resnet.bn1.train()  # as a probe in train mode would: only running statistics move
        return extractor

    monkeypatch.setattr(linear, "frozen_extractor", thawed)
    with pytest.raises(TrainingError, match="frozen backbone changed"):
        linear.run(changed(epochs=1), tmp_path)
    assert not JobFolder(tmp_path).done


@pytest.mark.parametrize("views", [None, 2])
def test_interrupted_probe_ends_as_uninterrupted(tmp_path: Path, stop_at: dict[int, str], views: int | None) -> None:
    """Stopped in mid-epoch, stopped at an epoch's end, and killed a few steps after its last checkpoint."""
    whole = trained(changed(views=views), tmp_path / "whole")
    wanted = whole.finish()
    config, folder = changed(views=views), JobFolder(tmp_path / "broken")
    stop_at.update({6: "stop", 8: "stop", 11: "kill"})
    for step in (6, 8):
        with pytest.raises(interrupt.Interrupted, match=f"step {step} of 16"):
            trained(config, folder.path)
        assert folder.status["state"] == "interrupted"
        interrupt.clear()
    with pytest.raises(Killed):
        trained(config, folder.path)
    probe = trained(config, folder.path)
    assert probe.session.restored is not None and probe.session.restored["step"] == 8
    assert all(torch.equal(weights(probe, index), weights(whole, index)) for index in range(3))
    result = probe.finish()
    assert result["by_lr"] == wanted["by_lr"] and result["metrics"] == wanted["metrics"]
    curves = [[steady(line) for line in job.metrics()] for job in (folder, whole.session.folder)]
    assert curves[0] == curves[1] and folder.status["state"] == "done"
    counted = [(job.path / "figures" / "per_class.csv").read_text() for job in (folder, whole.session.folder)]
    assert counted[0] == counted[1]
    lines = [line.split(",") for line in counted[0].splitlines()[1:]]
    right = sum(int(images) * float(top1) / 100 for _, images, top1 in lines if top1)
    assert 100 * right / sum(int(line[1]) for line in lines) == pytest.approx(wanted["metrics"]["top1"], abs=0.01)


def test_an_older_checkpoint_is_resumed(
    tmp_path: Path, stop_at: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a version that kept neither which images were right nor heads for a choice."""
    plain, folder, added = linear.Probe.state, JobFolder(tmp_path), ("right", "selectors")
    with monkeypatch.context() as older:
        older.setattr(linear.Probe, "state", lambda self: {k: v for k, v in plain(self).items() if k not in added})
        stop_at.update({14: "stop"})
        with pytest.raises(interrupt.Interrupted):
            linear.run(changed(views=2), folder.path)
    interrupt.clear()
    assert linear.run(changed(views=2), folder.path)["metrics"]["top1"] > 0 and folder.done
