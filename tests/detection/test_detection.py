"""Detection around Detectron2: key names, its config, counted batches, scores, figures, and running without it."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.detection import Boxes, DatasetMapper, Instances, ROIAlign, config
from helpers.orchestrator import ROOT, environment
from torch import nn

from detection import compat, stage
from detection import data as batches_of
from detection.config import detectron2_config
from detection.convert import convert, detectron2_key
from detection.evaluate import Counted, evaluate
from detection.pictures import FOUND, TRUE, WIDTH, predictions
from jigclu.config import ConfigError, DetectConfig
from jigclu.config.detection import DetectionDataConfig
from jigclu.data.loader import DataError, Unreadable
from jigclu.data.sources.coco import draw_scenes, open_split
from jigclu.network import Backbone
from jigclu.training.distributed import RankInfo
from orchestrate import preflight, run
from orchestrate.cli.retry import retry
from orchestrate.jobs.planned import write_jobs
from orchestrate.planning.experiments import load_all
from orchestrate.planning.plan import make_plan

ONE = RankInfo(0, 1, torch.device("cpu"))


# -- key names --------------------------------------------------------------------------------------------------------
def test_the_released_checkpoints_keys_are_renamed_as_by_the_released_converter(golden: Path) -> None:
    listed = json.loads((golden / "g9_detectron2_key_map.json").read_text())["map"]
    tagged = {key: torch.tensor(float(number)) for number, key in enumerate(listed)}
    actual = convert(tagged)
    assert actual == {new: tagged[old] for old, new in listed.items() if ".fc_" not in new} and len(actual) == 318


def test_a_key_that_no_backbone_has_is_rejected_by_name() -> None:
    for key in ("layer5.0.conv1.weight", "layer1.0.conv1.weight.more", "conv2.weight", "head.weight"):
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            convert({key: torch.zeros(1)})
    assert detectron2_key("layer4.2.downsample.1.bias") == "backbone.bottom_up.res5.2.shortcut.norm.bias"


def seasoned(name: str) -> Backbone:
    """Random weights, and batch norms with non-initial statistics."""
    torch.manual_seed(3)
    backbone = Backbone(name).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return backbone


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_converted_backbone_fits_exactly_and_computes_the_same(name: str) -> None:
    backbone = seasoned(name)
    model = stage.build_model(detectron2_config(DetectConfig(backbone=name), 100, 80, "cpu")).eval()
    report = model.load_state_dict(convert(backbone.weights()), strict=False)
    assert report.unexpected_keys == [] and not [key for key in report.missing_keys if "bottom_up" in key]
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model.backbone.bottom_up(images)
        net, wanted = backbone.resnet, {}
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        for number in (1, 2, 3, 4):
            x = wanted[f"res{number + 1}"] = getattr(net, f"layer{number}")(x)
    assert sorted(found) == sorted(wanted)
    for level, value in wanted.items():
        assert torch.allclose(found[level], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())), level


def test_a_backbone_different_from_the_detectors_is_rejected() -> None:
    model = stage.build_model(detectron2_config(config(), 100, 10, "cpu"))
    with pytest.raises(ConfigError, match="do not fit"):
        stage.load_backbone(model, Backbone("resnet34"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stage.load_backbone(model, seasoned("resnet18"))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("backbone.bottom_up.") for key in changed)


# -- Detectron2's config ----------------------------------------------------------------------------------------------
def test_the_papers_config_is_the_released_one() -> None:
    """protocols.md §2.6, value by value."""
    cfg = detectron2_config(DetectConfig(), 118_287, 80, "cpu")
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    assert cfg.MODEL.RESNETS.DEPTH == 50 and not cfg.MODEL.RESNETS.STRIDE_IN_1X1 and cfg.MODEL.BACKBONE.FREEZE_AT == 0
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (head.NAME, head.NUM_CONV, head.NUM_FC, head.CONV_DIM, head.FC_DIM) == (
        "FastRCNNConvFCHead",
        4,
        1,
        256,
        1024,
    )
    assert (head.POOLER_TYPE, head.POOLER_RESOLUTION, cfg.MODEL.MASK_ON) == ("ROIAlignV2", 7, False)
    assert {cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM, head.NORM} == {"BN"}
    assert (cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST) == (6000, 1000)
    assert (cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN) == (2000, 1000)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32], [64], [128], [256], [512]]
    assert cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 512 and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (640, 672, 704, 736, 768, 800) and cfg.INPUT.RANDOM_FLIP == "horizontal"
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1333, 800, 1333)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (8, 0.01, 180_000)
    assert tuple(solver.STEPS) == (120_000, 160_000) and (solver.GAMMA, solver.WEIGHT_DECAY) == (0.1, 1e-4)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD) == (1000, 0.001, "linear")
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY_NORM, cfg.TEST.PRECISE_BN.NUM_ITER) == (0.9, 0.0, 200)


# -- batches ----------------------------------------------------------------------------------------------------------
def sized(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"width": width, "height": height} for width, height in sizes]


def test_batches_are_counted_and_of_one_orientation() -> None:
    images = sized(*[(4, 3)] * 7, *[(3, 4)] * 4)
    long, short = batches_of.order(images, 5, 40, 4), batches_of.order(images, 5, 7, 4)
    assert np.array_equal(long[:7], short) and not np.array_equal(long, batches_of.order(images, 6, 40, 4))
    for batch in long:
        assert len({images[index]["width"] > images[index]["height"] for index, _ in batch}) == 1
    for turn in range(5):  # every image once a turn
        assert sorted(long[long[..., 1] == turn][:, 0].tolist()) == list(range(11))
    with pytest.raises(ConfigError, match="no image"):
        batches_of.order([], 0, 1, 4)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("scenes")
    split = draw_scenes(folder / "val", "val", 6, 64)
    return batches_of.register("scenes", split, folder), folder


def test_an_images_augmentation_depends_only_on_its_key(scenes: tuple[list[dict[str, Any]], Path]) -> None:
    """Not on the worker that reads it, the number of ranks, or numpy's global state."""
    images, cfg = scenes[0], detectron2_config(config(), 6, 10, "cpu")
    keys = batches_of.order(images, 1, 6, 4)

    def seen(workers: int, rank: int = 0, world: int = 1) -> list[list[torch.Tensor]]:
        np.random.seed(workers)
        rank_info = RankInfo(rank, world, ONE.device)
        found = batches_of.train_batches(cfg, images, 1, keys, workers, rank_info, Unreadable())
        return [[item["image"] for item in batch] for batch in found]

    alone = seen(0)
    two = [first + second for first, second in zip(seen(0, 0, 2), seen(1, 1, 2), strict=True)]
    for other in (seen(2), two):
        assert all(torch.equal(a, b) for x, y in zip(alone, other, strict=True) for a, b in zip(x, y, strict=True))
    assert len({image.shape for batch in alone for image in batch}) > 1  # images are augmented
    with pytest.raises(ConfigError, match="is not divisible by 3 ranks"):
        seen(0, 0, 3)


# -- scores and pictures ----------------------------------------------------------------------------------------------
class Oracle(nn.Module):
    """Finds exactly the annotated boxes without each image's first `missed`, their class shifted by `shift`."""

    def __init__(self, images: list[dict[str, Any]], shift: int = 0, missed: int = 0, modulo: int = 10):
        super().__init__()
        self.proposal_generator = nn.Identity()
        self.annotations = {image["image_id"]: image["annotations"] for image in images}
        self.shift, self.missed, self.modulo = shift, missed, modulo

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        found, proposed = [], []
        for image in batch:
            boxes = self.annotations[image["image_id"]][self.missed :]
            corners = torch.tensor([box["bbox"] for box in boxes]).view(-1, 4)
            corners[:, 2:] += corners[:, :2]
            classes = torch.tensor(
                [(box["category_id"] + self.shift) % self.modulo for box in boxes], dtype=torch.int64
            )
            here = Instances((image["height"], image["width"]), pred_boxes=Boxes(corners), pred_classes=classes)
            here.scores = torch.linspace(0.9, 0.5, len(boxes))
            found.append({"instances": here})
            proposal = Instances((image["height"], image["width"]), proposal_boxes=Boxes(corners.clone()))
            proposal.objectness_logits = here.scores
            proposed.append(proposal)
        self.proposal_generator((proposed, {}))
        return found


def scored(scenes: tuple[list[dict[str, Any]], Path], **how: int) -> dict[str, float]:
    images, folder = scenes
    cfg = detectron2_config(config(), 6, 10, "cpu")
    batches = Counted(batches_of.test_batches(cfg, images, 0, ONE, Unreadable()), len(images))
    return evaluate(Oracle(images, **how), batches, "scenes", folder).metrics


def test_a_perfect_detector_scores_100_and_a_blind_one_0(scenes: tuple[list[dict[str, Any]], Path]) -> None:
    perfect = scored(scenes)
    shown = {"ap", "ap50", "ap75", "ap_small", "ap_medium", "agnostic_ap", "agnostic_ap50", "proposal_ar100"}
    assert perfect.keys() >= shown
    assert perfect == pytest.approx(dict.fromkeys(perfect, 100.0)) and "person_ap" not in perfect
    blind = scored(scenes, missed=10)
    assert blind == dict.fromkeys(perfect, 0.0)


def test_class_agnostic_ap_ignores_wrong_classes(scenes: tuple[list[dict[str, Any]], Path]) -> None:
    wrong = scored(scenes, shift=1)
    assert wrong["ap"] < 20 and wrong["agnostic_ap"] == pytest.approx(100.0)


def test_the_picture_has_the_true_boxes_left_and_as_many_found_ones_right(
    scenes: tuple[list[dict[str, Any]], Path],
) -> None:
    images, folder = scenes
    scored(scenes)
    boxes = json.loads((folder / "coco_instances_results.json").read_text())
    names = {number + 1: f"kind {number}" for number in range(10)}
    picture = predictions(images, boxes, names)
    left, right = picture[:, :, :WIDTH], picture[:, :, -WIDTH:]

    def painted(part: torch.Tensor, colour: str) -> int:
        rgb = torch.tensor([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])[:, None, None]
        return int(((part - rgb).abs() < 1e-3).all(0).sum())

    assert painted(left, TRUE) > 500 and painted(right, FOUND) > 500
    assert painted(right, TRUE) < 50 and painted(left, FOUND) < 50
    assert painted(predictions(images, [], names)[:, :, -WIDTH:], FOUND) < 50


def test_people_are_scored_separately_if_the_split_has_people(data_root: Path, tmp_path: Path) -> None:
    split = open_split(DetectionDataConfig(name="coco_mini"), "val", data_root, tmp_path)
    images = batches_of.register("people", split, tmp_path)
    people = next(number for number, name in enumerate(split.categories) if name == "person")
    found = [
        {**image, "annotations": [box for box in image["annotations"] if box["category_id"] == people]}
        for image in images
    ]
    for image in found:
        image["annotations"] = [box for box in image["annotations"] if not box["iscrowd"]][:100]
    batches = Counted(iter([[image] for image in images]), len(images))
    scores = evaluate(Oracle(found, modulo=80), batches, "people", tmp_path).metrics
    assert scores["person_ap"] == pytest.approx(100, abs=0.1) and scores["person_ap50"] == pytest.approx(100, abs=0.1)
    assert scores["ap"] < 5 and scores["agnostic_ap"] < 50  # the other 79 kinds are missed


def test_a_broken_image_is_skipped_and_reported_and_no_worker_stays(tmp_path: Path) -> None:
    """Too many broken images end the job with one line; an error raised in a worker once made it hang."""
    split = draw_scenes(tmp_path / "train", "train", 6, 64)
    images = batches_of.register("broken", split, tmp_path)
    (tmp_path / "train" / "train-000002.png").write_bytes(b"cut short")
    cfg, keys = detectron2_config(config(), 6, 10, "cpu"), batches_of.order(images, 1, 3, 4)
    unreadable = Unreadable()
    with pytest.raises(DataError, match=r"1 of 6 images are unreadable .*train-000002\.png"):
        list(batches_of.train_batches(cfg, images, 1, keys, 1, ONE, unreadable))
    assert not multiprocessing.active_children()
    few = batches_of.Mapped(images * 400, DatasetMapper(cfg, True), 1, substitute=True)
    read = few[2, 0]
    assert read.image is not None and read.image["image_id"] == images[3]["image_id"]
    assert [Path(path).name for path in read.broken] == ["train-000002.png"]
    left_out = batches_of.test_batches(cfg, images * 400, 0, ONE, Unreadable())
    with closing(left_out):
        assert [next(left_out)[0]["image_id"] for _ in range(3)] == [1, 2, 4]


def test_boxes_reach_the_pooling_unrounded_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stage.build_model(detectron2_config(config(), 6, 10, "cpu")).eval()
    pooled, plain = [], ROIAlign.forward

    def watch(self: Any, maps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        pooled.append((maps.dtype, rois.dtype))
        return plain(self, maps, rois)

    monkeypatch.setattr(ROIAlign, "forward", watch)
    seen: list[torch.dtype] = []
    model.backbone.bottom_up.res2[0].conv1.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    image = [{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 64, "width": 64}]
    with torch.no_grad(), stage.bfloat16(model.backbone, True):
        model(image)
    with torch.no_grad():
        model(image)
    assert set(pooled) == {(torch.float32, torch.float32)} and seen == [torch.bfloat16, torch.float32]


# -- with and without Detectron2 --------------------------------------------------------------------------------------
def test_nothing_is_supplied_if_nothing_is_missing() -> None:
    code = "import numpy, sys, types; from PIL import Image\n"
    code += "for name in ('LINEAR', 'CUBIC', 'ANTIALIAS'): setattr(Image, name, name)\n"
    code += "for name in ('int', 'float', 'bool'): setattr(numpy, name, name)\n"
    code += "sys.modules['detectron2._C'] = theirs = types.ModuleType('theirs')\n"
    code += "from detection import compat; compat.prepare(); assert compat.SUPPLIED == [], compat.SUPPLIED\n"
    code += "assert Image.LINEAR == 'LINEAR' and numpy.int == 'int' and sys.modules['detectron2._C'] is theirs"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(ROOT), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "detectron2" else find(name, *more)
    )


@pytest.mark.usefixtures("without")
def test_without_detectron2_table4_says_in_one_line_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JIGCLU_STORE", str(tmp_path / "runs"))
    assert run.main(["table4", "--scale", "smoke", "--cluster", "local", "--cells", "JigClu AP"]) == 2
    message = capsys.readouterr().err
    assert (
        message.count("\n") == 1 and "table4: detectron2 is not installed" in message and "make detectron2" in message
    )
    assert run.main(["table4", "--scale", "smoke", "--dry-run"]) == 0  # planning needs none
    with pytest.raises(ConfigError, match="not installed"):
        compat.prepare()


@pytest.mark.usefixtures("without")
def test_without_detectron2_retry_does_not_resubmit_its_jobs(tmp_path: Path) -> None:
    plan = make_plan([load_all()["table4"]], "smoke", "official", only=["JigClu AP", "random AP"])
    write_jobs(plan, tmp_path)
    for job in plan.jobs.values():
        job.folder(tmp_path).set_status("failed")
    with pytest.raises(ConfigError, match="table4: detectron2 is not installed"):
        retry(tmp_path, [], "local", 1)
    assert {job.folder(tmp_path).status["state"] for job in plan.jobs.values()} == {"failed"}


@pytest.mark.usefixtures("without")
def test_without_detectron2_the_rest_of_the_paper_runs(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(list(load_all().values()), "smoke", "official")
    before = set(plan.jobs)
    detecting = {job.id for job in plan.jobs.values() if job.stage == "detect"}
    preflight.without_detectron2(plan, dict.fromkeys(before, "new"))
    # The encoders of Table 4 are other tables' too, so nothing else goes.
    assert detecting and set(plan.jobs) == before - detecting
    assert capsys.readouterr().out.startswith("table4: detectors are left out, detectron2 is not installed")
    alone = make_plan([load_all()["table4"]], "smoke", "official")
    done = {job.id: "done" if job.stage == "detect" else "new" for job in alone.jobs.values()}
    preflight.without_detectron2(alone, done)  # what is done already needs none
    assert len(alone.jobs) == 11


def test_the_mapper_is_detectron2s_own() -> None:
    cfg = detectron2_config(config(), 6, 10, "cpu")
    assert [type(augmentation).__name__ for augmentation in DatasetMapper(cfg, True).augmentations.augs] == [
        "ResizeShortestEdge",
        "RandomFlip",
    ]
