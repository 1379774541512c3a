"""What a detector on a few hundred photographs is made of: one class, frozen layers with fitting statistics, a small head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.detection import FrozenBatchNorm2d, config, job
from helpers.stop import steady

from detection import data, stage
from detection.config import detectron2_config
from jigclu.config import ConfigError, DetectConfig, identity
from jigclu.config.detection import DetectionDataConfig, DetectorConfig
from jigclu.data.sources.coco import draw_scenes, open_split
from jigclu.job_folder import JobFolder
from jigclu.training import interrupt
from jigclu.training.session import Session

SMALL: dict[str, Any] = {
    "channels": 32,
    "convs": 1,
    "norm": "GN",
    "frozen_stages": 3,
    "frozen_bn": True,
    "classes": "object",
}


def curve(folder: JobFolder) -> list[dict[str, Any]]:
    return [steady(line) for line in folder.metrics()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    torch.set_num_threads(1)
    folder = job(tmp_path_factory.mktemp("small"))
    stage.run(config(detector=SMALL), folder.path)
    return folder


def built(folder: JobFolder) -> stage.Detector:
    settings = config(detector=SMALL)
    return stage.Detector(settings, Session(folder.path, settings.runtime), folder.path / "scratch")


def test_the_printed_run_keeps_its_config_and_so_its_id() -> None:
    added = {"convs", "norm", "frozen_stages", "frozen_bn", "classes"}
    assert not added & identity(DetectConfig())["detector"].keys()
    assert added <= identity(config(detector=SMALL | {"convs": 2}))["detector"].keys()


def test_a_small_head_is_what_the_settings_say() -> None:
    cfg = detectron2_config(config(detector=SMALL), 12, 1, "cpu")
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (head.NUM_CONV, head.NUM_FC, head.NORM, cfg.MODEL.FPN.NORM) == (1, 1, "GN", "GN")
    plain = detectron2_config(config(detector={"norm": "none"}), 12, 1, "cpu").MODEL
    assert (plain.ROI_BOX_HEAD.NORM, plain.FPN.NORM, plain.RESNETS.NORM) == ("", "", "BN")
    with pytest.raises(ConfigError, match="norm GN has 32 groups, which do not divide 48 channels"):
        config(detector={"norm": "GN", "channels": 48})
    with pytest.raises(ConfigError, match="valid: all, object, person"):
        config(detector={"classes": "persn"})


def test_frozen_layers_stay_and_their_statistics_are_those_of_the_photographs(tmp_path: Path) -> None:
    detector = built(job(tmp_path))
    resnet = detector.model.backbone.bottom_up
    norms = [module for module in resnet.modules() if "BatchNorm" in type(module).__name__]
    assert norms and all(isinstance(module, FrozenBatchNorm2d) for module in norms)
    assert not torch.equal(norms[0].running_var, torch.ones_like(norms[0].running_var))
    trained = {name.split(".")[0] for name, value in resnet.named_parameters() if value.requires_grad}
    assert trained == {"res4", "res5"}
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    detector.run()
    changed = {key for key, value in resnet.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith(("res4", "res5")) and "norm" not in key for key in changed)


def test_one_class_is_scored_as_any_class(whole: JobFolder) -> None:
    metrics = whole.result["metrics"]
    assert whole.result["categories"] == 1 and "person_ap" not in metrics
    assert metrics["ap"] == pytest.approx(metrics["agnostic_ap"]) and metrics["proposal_ar100"] >= 0
    assert whole.result["half_widths"].keys() <= metrics.keys() and whole.result["resamples"] == 1000
    assert json.loads((whole.path / "resampled.json").read_text()).keys() == metrics.keys()


def test_an_interrupted_small_detector_ends_bit_equal(
    whole: JobFolder, tmp_path: Path, stop_at: dict[int, str]
) -> None:
    """The statistics are taken once: a resumed attempt has them in its checkpoint."""
    folder = job(tmp_path)
    stop_at[3] = "stop"
    with pytest.raises(interrupt.Interrupted, match="step 3 of 6"):
        stage.run(config(detector=SMALL), folder.path)
    interrupt.clear()
    stage.run(config(detector=SMALL), folder.path)
    assert curve(folder) == curve(whole)
    assert folder.result["metrics"] == whole.result["metrics"]
    assert folder.result["half_widths"] == whole.result["half_widths"]


def test_boxes_are_of_one_class_or_only_those_of_people(data_root: Path, tmp_path: Path) -> None:
    split = open_split(DetectionDataConfig(name="coco_mini"), "val", data_root, tmp_path)
    everything, people = data.of_classes(split, "object"), data.of_classes(split, "person")
    assert data.of_classes(split, "all") is split
    assert everything.categories == ["object"] and people.categories == ["person"]
    assert len(everything.annotations["annotations"]) == len(split.annotations["annotations"])
    assert 0 < len(people.annotations["annotations"]) < len(split.annotations["annotations"])
    assert {box["category_id"] for box in everything.annotations["annotations"]} == {1}
    with pytest.raises(ConfigError, match="no category 'person'; valid here: all, object"):
        data.of_classes(draw_scenes(tmp_path / "val", "val", 2, 64), "person")


def test_defaults_are_the_released_detector() -> None:
    assert (DetectorConfig().convs, DetectorConfig().norm, DetectorConfig().classes) == (4, "BN", "all")
    assert (DetectorConfig().frozen_stages, DetectorConfig().frozen_bn) == (0, False)
