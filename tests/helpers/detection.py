"""Helpers of the detection tests. Importing this module skips the test file if Detectron2 is not importable."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from jigclu.config import DetectConfig, parse
from jigclu.files import write_json
from jigclu.job_folder import JobFolder

if importlib.util.find_spec("detectron2") is None:
    pytest.skip("detectron2 is not importable: `make detectron2`", allow_module_level=True)

from detection import compat

compat.prepare()  # before the first import of detectron2

from detectron2.data import DatasetMapper  # noqa: E402
from detectron2.layers import FrozenBatchNorm2d, ROIAlign  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402

__all__ = ["Boxes", "DatasetMapper", "FrozenBatchNorm2d", "Instances", "ROIAlign", "config", "job"]

TINY: dict[str, Any] = {
    "data": {"name": "coco_scenes", "size": 64, "train_images": 12, "val_images": 5},
    "backbone": "resnet18",
    "solver": {"schedule": 0.16, "batch_size": 4, "lr": 0.02},  # 6 iterations
    "detector": {"channels": 16, "fc_dim": 16, "rois": 16, "anchors": [8, 16, 32, 48, 64], "proposals": 50},
    "sizes": {"train": [56, 64], "test": 64, "longest": 96},
    "precise_bn": 2,
    "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1},
}


def config(**over: Any) -> DetectConfig:
    values = {key: {**value, **over.pop(key, {})} if isinstance(value, dict) else value for key, value in TINY.items()}
    return parse("detect", {**values, **over})


def job(path: Path, seed: int = 0, **fields: Any) -> JobFolder:
    folder = JobFolder(path / "detect" / "aaaaaaaaaaaa").create()
    write_json(folder.path / "job.json", {"seed": seed, "upstream": [], **fields})
    return folder
