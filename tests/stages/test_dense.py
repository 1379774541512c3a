"""The dense probe: which cells are in an object, a fit in closed form, and the contract of every stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jigclu.config import ConfigError, DenseConfig, parse
from jigclu.data.sources.coco import DetectionSplit
from jigclu.files import write_json
from jigclu.job_folder import JobFolder
from jigclu.network import Backbone
from jigclu.stages.dense import Cells, Photographs, Sums, run
from jigclu.training import interrupt
from jigclu.training.checkpoint import save_atomic

TINY: dict[str, Any] = {
    "data": {"name": "coco_scenes", "size": 64, "train_images": 40, "val_images": 20},
    "backbone": "resnet18",
    "image_size": 64,
    "batch_size": 8,
    "runtime": {"device": "cpu", "threads": 1, "workers": 0},
}


def config(**over: Any) -> DenseConfig:
    return parse("dense", {**TINY, **over})


def job(path: Path, seed: int = 0, **fields: Any) -> JobFolder:
    folder = JobFolder(path / "dense" / "aaaaaaaaaaaa").create()
    write_json(folder.path / "job.json", {"seed": seed, "upstream": [], **fields})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    folder = job(tmp_path_factory.mktemp("whole"))
    run(config(), folder.path)
    return folder


def split_of(folder: Path, boxes: list[tuple[int, list[float], int]], size: tuple[int, int]) -> DetectionSplit:
    """One grey photograph of (width, height) with boxes (category, bbox, iscrowd)."""
    Image.new("RGB", size, "grey").save(folder / "a.png")
    listed = [
        {"id": number, "image_id": 7, "category_id": kind, "bbox": box, "iscrowd": crowd}
        for number, (kind, box, crowd) in enumerate(boxes, 1)
    ]
    image = {"id": 7, "file_name": "a.png", "width": size[0], "height": size[1]}
    names = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    return DetectionSplit({"images": [image], "annotations": listed, "categories": names}, folder, "")


def test_a_cell_is_in_an_object_if_its_centre_is(tmp_path: Path) -> None:
    """A photograph of 128 x 96, scaled down to 64 x 48: cells of 16 pixels are 32 of the original's."""
    boxes = [(2, [0.0, 0.0, 17.0, 17.0], 0), (1, [60.0, 30.0, 40.0, 34.0], 0), (2, [0.0, 40.0, 128.0, 56.0], 1)]
    photograph = Photographs(split_of(tmp_path, boxes, (128, 96)), 64, 16)[0]
    assert photograph.canvas is not None and photograph.targets is not None and photograph.counted is not None
    in_object, in_person = photograph.targets.T.reshape(2, 4, 4)
    assert in_object.nonzero().tolist() == [[0, 0], [1, 2]]  # the dog's centre at 16, 16; the person's at 80, 48
    assert in_person.nonzero().tolist() == [[1, 2]]
    # Row 0 counts, row 1 and 2 are in the crowd except for the person, row 3 is below the photograph.
    assert photograph.counted.reshape(4, 4).nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 2]]
    assert photograph.canvas.shape == (3, 64, 64) and not photograph.canvas[:, 48:].any()


def test_the_fit_is_ridge_regression_on_standardised_features() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=rng) * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0, 0.0]) + 3
    y = torch.rand(500, 2, generator=rng) < torch.sigmoid(x[:, :1] - 3)
    cells = [Cells(x[part], y[part], torch.zeros(250, dtype=torch.int64)) for part in (slice(250), slice(250, None))]
    sums = [Sums(), Sums()]
    for one, part in zip(sums, cells, strict=True):
        one.add(part)
    weights, offsets = (sums[0] + sums[1]).fit(0.3)
    deviation = x.double().std(0, correction=0)
    deviation[5] = math.inf  # a constant channel
    z, target = ((x - x.mean(0)) / deviation).double(), y.double() - y.double().mean(0)
    wanted = torch.linalg.solve(z.T @ z / 500 + 0.3 * torch.eye(6), z.T @ target / 500)
    found = x @ weights + offsets
    assert torch.allclose(found.double(), z @ wanted + y.double().mean(0), atol=1e-4)
    assert not weights[5].any()


def test_cells_of_objects_score_above_chance(whole: JobFolder) -> None:
    """Drawn objects differ from their ground, so that random filters see them, too."""
    result = whole.result
    metrics = result["metrics"]
    assert metrics.keys() == {"object_ap", "object_chance"}  # scenes have no people
    assert metrics["object_ap"] > metrics["object_chance"] + 10
    assert result["half_widths"].keys() == result["standard_errors"].keys() == {"object_ap"}
    assert 0 < result["half_widths"]["object_ap"] < 25 and result["resamples"] == 1000
    assert (result["images"], result["val_images"], result["cells"]) == (40, 20, 320)
    assert result["penalties"]["object"] in config().penalties
    resampled = json.loads((whole.path / "resampled.json").read_text())["object_ap"]
    assert len(resampled) == 1000 and abs(np.mean(resampled) - metrics["object_ap"]) < 5
    assert whole.status["state"] == "done" and len(whole.job["data_fingerprint"].split("+")) == 2


def test_a_second_attempt_gives_the_same_numbers_after_a_stop(
    whole: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = job(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: True)
        with pytest.raises(interrupt.Interrupted, match="starts over on resume"):
            run(config(), folder.path)
    assert folder.status["state"] == "interrupted" and not folder.done
    run(config(runtime={"device": "cpu", "threads": 1, "workers": 1}), folder.path)
    assert folder.result["metrics"] == whole.result["metrics"]
    assert folder.result["half_widths"] == whole.result["half_widths"]


def test_it_probes_the_upstream_encoder(whole: JobFolder, tmp_path: Path) -> None:
    torch.manual_seed(9)
    encoder = tmp_path / "pretrain" / "bbbbbbbbbbbb" / "encoder.pt"
    encoder.parent.mkdir(parents=True)
    save_atomic(encoder, Backbone("resnet18").weights())
    folder = job(tmp_path, upstream=["bbbbbbbbbbbb"])
    assert run(config(), folder.path)["metrics"] != whole.result["metrics"]
    assert folder.job["encoder_digest"]


def test_people_are_scored_where_there_are_people(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JIGCLU_DATA", str(data_root))
    data = {"name": "coco_mini", "train_images": 30, "val_images": 20}
    metrics = run(config(data=data, image_size=128, layers=["layer4"]), job(tmp_path).path)["metrics"]
    assert metrics.keys() == {"object_ap", "object_chance", "person_ap", "person_chance"}
    assert metrics["person_chance"] < metrics["object_chance"] < 100


def test_an_unreadable_photograph_ends_the_job_with_one_line(tmp_path: Path) -> None:
    split = split_of(tmp_path, [], (64, 64))
    (tmp_path / "a.png").write_bytes(b"cut short")
    assert Photographs(split, 64, 16)[0].canvas is None


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(ConfigError, match="layers: at least one is needed"):
        config(layers=[])
    with pytest.raises(ConfigError, match="valid: layer1, layer2, layer3, layer4; did you mean layer3"):
        config(layers=["layer33"])


def test_scores_of_a_random_order_have_the_ap_of_chance() -> None:
    """Which is why `object_chance` stands beside `object_ap`."""
    from jigclu.evaluation.bootstrap import Ranked, average_precision

    rng = np.random.default_rng(0)
    hit = rng.random(20_000) < 0.4
    ranked = Ranked(np.zeros(len(hit), np.int64), hit, np.ones(len(hit), bool), np.array([hit.sum()]))
    assert average_precision(ranked, np.ones((1, 1), np.int16))[0] == pytest.approx(40, abs=1.5)
