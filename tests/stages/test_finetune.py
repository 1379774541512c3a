"""Fine-tuning: learning, learning rates, initialisation, interruption, several ranks, and the padded crop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tf
from helpers.ranks import on_ranks
from helpers.small_cifar import small_cifar
from helpers.stop import Killed, steady
from torch import Tensor

from jigclu import augment, counter_rng
from jigclu.config import ConfigError, FinetuneConfig, LinearConfig, parse
from jigclu.data.canvases import open_dataset
from jigclu.evaluation.metrics import accuracy
from jigclu.evaluation.transforms import centre_crop, padded_crop, random_crop
from jigclu.job_folder import JobFolder
from jigclu.network import Backbone
from jigclu.stages import finetune, linear
from jigclu.training import interrupt
from jigclu.training.checkpoint import save_atomic
from jigclu.training.session import Session

VALUES: dict[str, Any] = {
    "data": {"name": "scenes", "canvas": 32, "train_images": 30, "val_images": 20},
    "backbone": "resnet18",
    "image_size": 32,
    "resize": 32,
    "batch_size": 10,
    "epochs": 3,
    "milestones": [0.4, 0.7],
    "lr": 0.01,
    "head_lr": 0.05,
    "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1},
}


def config(**over: Any) -> FinetuneConfig:
    return parse("finetune", {**VALUES, **over})


def job(path: Path, **fields: Any) -> JobFolder:
    folder = JobFolder(path).create()
    folder.update_job(**{"seed": 1, **fields})
    return folder


def make_tuner(settings: FinetuneConfig, folder: JobFolder) -> finetune.Finetuner:
    """The Finetuner as `finetune.run` sets it up, for inspection."""
    train, val = open_dataset(settings.data, "train"), open_dataset(settings.data, "val")
    return finetune.Finetuner(settings, Session(folder.path, settings.runtime), train, val)


def trained(settings: FinetuneConfig, folder: JobFolder) -> finetune.Finetuner:
    tuner = make_tuner(settings, folder)
    while tuner.epoch < settings.epochs:
        tuner.train_epoch()
    return tuner


# -- it learns --------------------------------------------------------------------------------------------------------
def test_it_learns_colours_and_reports_the_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generated CIFAR whose classes are colours: it is tested on unseen images, through the padded crop."""
    small_cifar(tmp_path, each=30)
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path))
    settings = config(
        data={"name": "cifar10", "canvas": 32}, crop="padded", batch_size=25, epochs=5, schedule="cosine", head_lr=None
    )
    folder = job(tmp_path / "finetune" / "a")
    result = finetune.run(settings, folder.path)
    curve = {round(line["epoch"]): line["top1"] for line in folder.metrics() if "top1" in line}
    assert list(curve) == [2, 4, 5]  # every second epoch and the last
    metrics = result["metrics"]
    assert metrics["top1"] == max(curve.values()) >= 80 and metrics["last_top1"] == curve[5]
    assert curve[metrics["best_epoch"]] == metrics["top1"] <= metrics["top5"] <= 100
    assert result["images"] == 150 and result["val_images"] == 30 and result["unreadable"] == []
    assert result["lr"] == result["head_lr"] == 0.01 and folder.job["data_fingerprint"].count("+") == 1


def test_it_overfits_a_few_scenes(tmp_path: Path) -> None:
    tuner = trained(
        config(crop="padded", padding=0, batch_size=30, epochs=25, schedule="cosine", head_lr=None, validate_every=99),
        job(tmp_path),
    )
    tuner.val = tuner.train
    assert tuner.validate()["top1"] >= 80
    backbone, head = tuner.model.children()
    images = torch.stack([tuner.train[i].canvas for i in range(30)])
    with torch.no_grad():
        scores = head(backbone(centre_crop(images, torch.full((30, 2), 32), 32, 32)))
    assert accuracy(scores, torch.from_numpy(tuner.train.labels)) == tuner.validate()


# -- rates ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("head_lr", "expected"), [(None, 0.01), (5.0, 5.0)])
def test_the_head_has_its_own_rate_if_given(tmp_path: Path, head_lr: float | None, expected: float) -> None:
    tuner = make_tuner(config(head_lr=head_lr, weight_decay=1e-4), job(tmp_path))
    backbone, head = tuner.optimizer.param_groups
    assert [group["lr"] for group in (backbone, head)] == [0.01, expected]
    assert all(group["momentum"] == 0.9 and group["weight_decay"] == 1e-4 for group in (backbone, head))
    parts = [list(map(id, part.parameters())) for part in tuner.model.children()]
    assert [list(map(id, group["params"])) for group in (backbone, head)] == parts and len(parts[1]) == 2


def test_each_group_follows_the_schedule_from_its_own_rate(tmp_path: Path) -> None:
    folder = job(tmp_path)
    trained(config(validate_every=3), folder)
    rates = [(line["lr"], line["head_lr"]) for line in folder.metrics()]
    assert rates == [pytest.approx((0.01 * fall, 0.05 * fall)) for fall in (1, 0.1, 0.01) for _ in range(3)]
    cosine = config(schedule="cosine", epochs=4)
    halves = [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    assert [finetune.rate(cosine, 0.05, epoch) for epoch in range(4)] == pytest.approx([0.05 * half for half in halves])


@pytest.mark.parametrize(("subset", "lr"), [("semi1", 0.02), ("semi10", 0.01)])
def test_the_schedule_is_the_released_ones(golden: Path, subset: str, lr: float) -> None:
    values = json.loads((golden / "g7_schedules_accuracy.json").read_text())
    (wanted,) = (rates for name, rates in values.items() if name.startswith(f"{subset}_trunk_head"))
    released = FinetuneConfig(lr=lr, epochs=len(wanted))
    assert released.head_lr is None and released.schedule == "steps"  # what the released code does, and by default
    for epoch, (trunk, head) in enumerate(wanted):
        assert finetune.rate(released, lr, epoch) == pytest.approx(trunk, rel=1e-12) == pytest.approx(head, rel=1e-12)


# -- where it starts --------------------------------------------------------------------------------------------------
def test_it_starts_from_its_upstream_and_trains_every_layer(tmp_path: Path) -> None:
    torch.manual_seed(42)
    state = Backbone("resnet18").resnet.state_dict()
    state["bn1.running_mean"] += 0.5
    save_atomic(JobFolder(tmp_path / "pretrain" / "0123456789ab").create().path / "encoder.pt", state)
    folder = job(tmp_path / "finetune" / "a", upstream=["0123456789ab"])
    tuner = make_tuner(config(epochs=1), folder)
    backbone, head = tuner.model.children()
    assert all(torch.equal(value, state[name]) for name, value in backbone.resnet.state_dict().items())
    tuner.train_epoch()
    moved = [name for name, value in backbone.resnet.state_dict().items() if not torch.equal(value, state[name])]
    assert moved == list(state)  # running statistics too: batch norm is in train mode
    assert head.weight.std() > 0


def test_the_classifier_starts_like_the_probes(tmp_path: Path) -> None:
    """N(0, 0.01), bias 0; without an upstream the backbone is random by the job's seed."""
    heads, backbones = [], []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        backbone, head = make_tuner(config(), job(tmp_path / name, seed=seed)).model.children()
        heads.append(head.weight)
        backbones.append(backbone.resnet.conv1.weight)
    for values in (heads, backbones):
        assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    assert heads[0].std().item() == pytest.approx(0.01, rel=0.05) and heads[0].shape == (10, 512)
    shared = {name: value for name, value in VALUES.items() if name in LinearConfig.model_fields}
    probe = parse("linear", {**shared, "other_lrs": [], "epochs": 1})
    data = open_dataset(probe.data, "train"), open_dataset(probe.data, "val")
    linears = linear.Probe(probe, Session(job(tmp_path / "d").path, probe.runtime), *data)
    assert torch.equal(linears.heads[0].weight, heads[0])


def test_too_few_images_are_rejected_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^30 images do not fill one batch of 31$"):
        finetune.run(config(batch_size=31), tmp_path)


# -- interruption and ranks -------------------------------------------------------------------------------------------
def test_an_interrupted_job_ends_bit_equal(tmp_path: Path, stop_at: dict[int, str]) -> None:
    """Stopped in mid-epoch, stopped after the best validation, and killed two steps after its checkpoint."""
    settings, folder = config(validate_every=1, precision="bfloat16"), job(tmp_path / "broken")
    whole = trained(settings, job(tmp_path / "whole"))
    wanted = whole.finish()
    stop_at.update({2: "stop", 6: "stop", 8: "kill"})
    for step in (2, 6):
        with pytest.raises(interrupt.Interrupted, match=f"step {step} of 9"):
            trained(settings, folder)
        interrupt.clear()
    with pytest.raises(Killed):
        trained(settings, folder)
    tuner = trained(settings, folder)
    assert tuner.session.restored is not None and tuner.session.restored["step"] == 6
    actual, theirs = tuner.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(actual[name], theirs[name]) for name in theirs)
    assert tuner.finish()["metrics"] == wanted["metrics"]
    curves = [[steady(line) for line in each.session.folder.metrics()] for each in (tuner, whole)]
    assert curves[0] == curves[1] and folder.status["state"] == "done"


# A small rate: at a real one, batch norm over few images amplifies rounding a thousandfold within a few steps.
TWO = config(lr=1e-4, head_lr=1e-3, epochs=2, validate_every=1, data={**VALUES["data"], "val_images": 21})


def _finetune(out: Path) -> None:
    finetune.run(TWO, out)


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    folders = [job(tmp_path / "finetune" / name) for name in ("one", "two")]
    on_ranks(2, _finetune, folders[1].path)
    _finetune(folders[0].path)
    single, double = ([line["loss"] for line in folder.metrics()] for folder in folders)
    assert len(single) == 6 and single == pytest.approx(double, rel=1e-4)
    results = [folder.result for folder in folders]
    assert [result["world"] for result in results] == [1, 2] and [r["val_images"] for r in results] == [21, 21]
    assert results[0]["metrics"].keys() == results[1]["metrics"].keys() == {"top1", "top5", "last_top1", "best_epoch"}
    for folder, result in zip(folders, results, strict=True):
        packed = np.frombuffer((folder.path / "correct.bits").read_bytes(), np.uint8)
        assert 100 * np.unpackbits(packed, count=21).mean() == pytest.approx(result["metrics"]["top1"])
    for name in ("top1", "top5", "last_top1"):
        assert results[0]["metrics"][name] == pytest.approx(results[1]["metrics"][name], abs=100 / 21 + 1e-9)


# -- transforms -------------------------------------------------------------------------------------------------------
def noise(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("padding", [0, 4, 7])
def test_the_padded_crop_is_torchvisions_bit_for_bit(padding: int) -> None:
    """Every shape on one canvas, every offset; the canvas outside the image is not read."""
    canvas, size = noise(9, 40), 32
    sizes = torch.tensor([(32, 32), (40, 40), (33, 40)] * 3)
    room = sizes + 2 * padding - size
    offsets = torch.cat((torch.zeros_like(room[:3]), room[3:6] // 2, room[6:]))
    flip = torch.arange(9) % 2 == 0
    actual = padded_crop(canvas, sizes, offsets, flip, size, padding)
    assert actual.dtype == torch.uint8
    for image, source, (height, width), (upper, left), turned in zip(
        actual, canvas, sizes.tolist(), offsets.tolist(), flip, strict=True
    ):
        wanted = tf.crop(tf.pad(source[:, :height, :width], [padding]), upper, left, size, size)
        assert torch.equal(image, tf.hflip(wanted) if turned else wanted)


def test_padded_crops_are_drawn_evenly_by_epoch_and_image() -> None:
    settings, canvas, indices = config(crop="padded"), noise(1, 32).expand(4000, 3, 32, 32), torch.arange(4000)
    sizes = torch.full((4000, 2), 32)
    drawn = counter_rng.uniforms(5, counter_rng.PROBE, 1, indices, 1, 3)[:, 0]
    offsets = (drawn[:, :2] * 9).long()
    for axis in (0, 1):
        assert np.bincount(offsets[:, axis], minlength=9).min() > 380 and offsets[:, axis].max() == 8
    first = slice(0, 50)
    actual = random_crop(settings, canvas[first], sizes[first], indices[first], 5, 1)
    flip = drawn[first, 2] < 0.5
    wanted = padded_crop(canvas[first], sizes[first], offsets[first], flip, 32, 4)
    torch.testing.assert_close(actual, augment.normalise(wanted.float() / 255), rtol=0, atol=0)
    single = random_crop(settings, canvas[7:8], sizes[7:8], indices[7:8], 5, 1)
    assert torch.equal(single[0], actual[7]) and not torch.equal(
        single, random_crop(settings, canvas[7:8], sizes[7:8], indices[7:8], 5, 2)
    )


def test_an_image_too_small_for_a_padded_crop_is_rejected_in_one_line() -> None:
    settings, sizes = config(crop="padded", image_size=64), torch.tensor([(64, 64), (55, 60)])
    with pytest.raises(
        ConfigError,
        match=r"^crop: padded: an image of 60 x 55 with a border of 4 pixels is smaller than image_size 64$",
    ) as error:
        random_crop(settings, noise(2, 64), sizes, torch.arange(2), 0, 0)
    assert "\n" not in str(error.value)


def test_the_test_transform_does_not_change_an_image_of_its_size() -> None:
    canvas = noise(8, 32)
    actual = centre_crop(canvas, torch.full((8, 2), 32), 32, 32)
    assert torch.equal(actual, augment.normalise(canvas.float() / 255))
