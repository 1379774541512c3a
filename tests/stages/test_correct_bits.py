"""`correct.bits` of a fine-tuning: the validated epoch that is reported, image by image, without unreadable ones."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from jigclu.config import parse
from jigclu.data.canvases import open_dataset
from jigclu.data.sources.base import Source
from jigclu.evaluation.metrics import write_correct
from jigclu.evaluation.transforms import centre_crop
from jigclu.job_folder import JobFolder
from jigclu.stages import finetune
from jigclu.training.session import Session

TUNING = parse(
    "finetune",
    {
        "data": {"name": "scenes", "canvas": 32, "train_images": 30, "val_images": 1001},
        **{"backbone": "resnet18", "image_size": 32, "resize": 32, "batch_size": 10, "epochs": 2, "validate_every": 1},
        "runtime": {"device": "cpu", "threads": 1, "workers": 0},
    },
)
BROKEN = 7  # one of 1,001 may be unreadable


def bits(folder: JobFolder, count: int) -> list[bool]:
    packed = np.frombuffer((folder.path / "correct.bits").read_bytes(), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool).tolist()


def test_bits_are_packed_as_numpy_packs_them(tmp_path: Path) -> None:
    right = torch.rand(1001, generator=torch.Generator().manual_seed(0)) < 0.3
    folder = JobFolder(tmp_path).create()
    write_correct(folder, right)
    assert bits(folder, 1001) == right.tolist() and (tmp_path / "correct.bits").stat().st_size == 126
    assert not list(tmp_path.glob("*.tmp"))


def test_a_tuned_networks_bits_are_those_of_the_reported_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = open_dataset(TUNING.data, "train"), open_dataset(TUNING.data, "val")
    plain = type(val.source).pixels

    def broken(self: Source, index: int, longest: int) -> np.ndarray:
        if self is val.source and index == BROKEN:
            raise OSError("image file is truncated")
        return plain(self, index, longest)

    monkeypatch.setattr(type(val.source), "pixels", broken)
    tuner = finetune.Finetuner(TUNING, Session(tmp_path, TUNING.runtime), train, val)
    tuner.train_epoch()
    model = deepcopy(tuner.model)
    tuner.best["top1"] = 99.0 + tuner.best["top1"] / 100  # so that the first epoch stays the best
    tuner.train_epoch()
    tuner.best["top1"] = 100 * (tuner.best["top1"] - 99)
    result = tuner.finish()
    assert result["metrics"]["best_epoch"] == 1
    right = bits(JobFolder(tmp_path), result["val_images"])
    assert result["val_images"] == 1000 and 100 * np.mean(right) == pytest.approx(result["metrics"]["top1"])
    shown = [index for index in range(50) if index != BROKEN]
    canvas = torch.stack([val[index].canvas for index in shown])
    with torch.no_grad():
        scores = model(centre_crop(canvas, torch.full((49, 2), 32), 32, 32))
    assert right[:49] == (scores.argmax(1).numpy() == val.labels[shown]).tolist()
