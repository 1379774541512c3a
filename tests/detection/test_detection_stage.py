"""The stage `detect` keeps the contract of the other stages: it learns, resumes bit-equal, and runs on several ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.detection import config, job
from helpers.ranks import on_ranks
from helpers.stop import Killed, steady

from detection import stage
from jigclu.config import DetectConfig
from jigclu.job_folder import JobFolder
from jigclu.network import Backbone
from jigclu.training import interrupt
from jigclu.training.batch_norm import GlobalBatchNorm2d
from jigclu.training.checkpoint import save_atomic
from jigclu.training.session import Session, TrainingError

STEPS = 6


def curve(folder: JobFolder) -> list[dict[str, Any]]:
    return [steady(line) for line in folder.metrics()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """An uninterrupted training."""
    torch.set_num_threads(1)
    folder = job(tmp_path_factory.mktemp("whole"))
    stage.run(config(), folder.path)
    return folder


def test_a_job_folder_has_the_same_files_as_other_stages(whole: JobFolder) -> None:
    result = whole.result
    columns = {"ap", "ap50", "ap75", "ap_small", "ap_medium", "agnostic_ap", "agnostic_ap50"}
    assert columns <= result["metrics"].keys() and all(math.isfinite(value) for value in result["metrics"].values())
    assert (result["iterations"], result["images"], result["val_images"], result["categories"]) == (STEPS, 12, 5, 10)
    assert result["detectron2"] and {"torch", "python"} <= result["versions"].keys()
    lines = list(whole.metrics())
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {"loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "lr"} <= lines[0].keys()
    assert lines[0]["loss"] == pytest.approx(sum(v for k, v in lines[0].items() if k.startswith("loss_")), rel=1e-5)
    # Steps at 2/3 and 8/9 of 6 iterations: the rate falls tenfold after the 4th and the 5th.
    assert [round(line["lr"] / lines[0]["lr"], 6) for line in lines] == [1, 1, 1, 1, 0.1, 0.01]
    assert whole.status["state"] == "done" and len(whole.job["data_fingerprint"].split("+")) == 2
    assert (whole.path / "figures" / "predictions.png").stat().st_size > 1000
    assert not list((whole.path / "checkpoint").glob("step-*"))


def test_an_interrupted_job_ends_bit_equal(
    whole: JobFolder, tmp_path: Path, stop_at: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a step, killed two steps after the checkpoint, and stopped again during the evaluation."""
    folder = job(tmp_path)
    stop_at.update({2: "stop", 4: "kill"})
    with pytest.raises(interrupt.Interrupted, match="step 2 of 6"):
        stage.run(config(), folder.path)
    assert folder.status["state"] == "interrupted"
    interrupt.clear()
    with pytest.raises(Killed):
        stage.run(config(), folder.path)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "precise_batch_norm", lambda *_: interrupt.request())
        with pytest.raises(interrupt.Interrupted, match="stopped in evaluation"):
            stage.run(config(), folder.path)
    interrupt.clear()
    assert not folder.done and (folder.path / "checkpoint" / "step-000000006.pt").exists()
    stage.run(config(), folder.path)
    assert curve(folder) == curve(whole)
    assert folder.result["metrics"] == whole.result["metrics"]


def test_workers_and_logging_change_nothing(whole: JobFolder, tmp_path: Path) -> None:
    folder = job(tmp_path)
    stage.run(config(runtime={"workers": 2, "log_every": 3}), folder.path)
    assert curve(folder) == [line for line in curve(whole) if line["step"] % 3 == 0]
    assert folder.result["metrics"] == whole.result["metrics"]


def test_another_seed_is_another_training(whole: JobFolder, tmp_path: Path) -> None:
    folder = job(tmp_path, seed=1)
    stage.run(config(solver={"schedule": 0.14}), folder.path)
    assert next(folder.metrics())["loss"] != next(whole.metrics())["loss"]


def built(folder: JobFolder, settings: DetectConfig) -> stage.Detector:
    return stage.Detector(settings, Session(folder.path, settings.runtime), folder.path / "scratch")


def test_it_starts_from_the_upstream_encoder(tmp_path: Path) -> None:
    torch.manual_seed(9)
    weights = Backbone("resnet18").weights()
    encoder = tmp_path / "pretrain" / "bbbbbbbbbbbb" / "encoder.pt"
    encoder.parent.mkdir(parents=True)
    save_atomic(encoder, weights)
    state = built(job(tmp_path, upstream=["bbbbbbbbbbbb"]), config()).model.state_dict()
    assert torch.equal(state["backbone.bottom_up.res4.1.conv2.weight"], weights["layer3.1.conv2.weight"])
    encoder.unlink()
    with pytest.raises(FileNotFoundError, match="upstream encoder is missing"):
        built(job(tmp_path, upstream=["bbbbbbbbbbbb"]), config())


def test_a_few_scenes_are_learned(tmp_path: Path) -> None:
    """40 steps on 12 scenes: the losses fall, and it finds boxes that an untrained detector does not find."""
    settings = config(
        data={"train_images": 12, "val_images": 10},
        solver={"schedule": 1.1, "lr": 0.1},
        detector={"channels": 32, "fc_dim": 64, "rois": 32},
        sizes={"train": [64]},
    )
    folder = job(tmp_path)
    metrics = stage.run(settings, folder.path)["metrics"]
    lines = list(folder.metrics())
    first, last = (sum(line["loss_rpn_cls"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert len(lines) == 40 and last < 0.3 * first
    assert metrics["agnostic_ap50"] > 3


# -- ranks ------------------------------------------------------------------------------------------------------------
def _detect(out: Path) -> None:
    settings = config(solver={"schedule": 0.14}, sizes={"train": [32, 64]})  # which ranks pad to different sizes
    folder = JobFolder(out)
    detector = stage.Detector(settings, Session(folder.path, settings.runtime), out / f"scratch{detector_rank()}")
    assert isinstance(detector.model.backbone.bottom_up.stem.conv1.norm, GlobalBatchNorm2d)
    detector.run()
    torch.save(detector.model.state_dict(), out / f"rank{detector.rank_info.rank}.pt")


def detector_rank() -> int:
    import os

    return int(os.environ["RANK"])


def test_two_ranks_train_one_network_and_score_every_image_once(tmp_path: Path) -> None:
    folder = job(tmp_path)
    on_ranks(2, _detect, folder.path)
    first, second = (torch.load(folder.path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert folder.result["world"] == 2 and folder.result["val_images"] == 5
    boxes = json.loads((folder.path / "scratch0" / "coco_instances_results.json").read_text())
    assert {box["image_id"] for box in boxes} <= {1, 2, 3, 4, 5}
    assert (folder.path / "scratch0" / "instances_predictions.pth").exists()
    found = torch.load(folder.path / "scratch0" / "instances_predictions.pth", weights_only=True)
    assert sorted(box["image_id"] for box in found) == [1, 2, 3, 4, 5]


def test_a_non_finite_loss_ends_the_job_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"non-finite loss at step \d"):
        stage.run(config(solver={"lr": 1e9}), job(tmp_path).path)
