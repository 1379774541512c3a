"""A job killed or stopped at any step ends with the same weights as an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jigclu.config import parse
from jigclu.job_folder import JobFolder
from jigclu.stages import pretrain
from jigclu.training import interrupt
from jigclu.training.checkpoint import Checkpoints
from jigclu.training.session import TrainingError

RUNTIME = {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1, "checkpoint_minutes": 1e-9}
CONFIG: dict[str, Any] = {
    "data": {"name": "scenes", "canvas": 32, "train_images": 50, "val_images": 10},
    "backbone": "resnet18",
    "image_size": 32,
    "batch_size": 10,
    "epochs": 2,
    "runtime": RUNTIME,
}
STEPS = 10
CHILD = """
import json, sys
from jigclu.config import parse
from jigclu.stages import pretrain
pretrain.run(parse("pretrain", json.loads(sys.argv[1])), sys.argv[2])
"""


def folder(path: Path) -> JobFolder:
    job = JobFolder(path).create()
    job.update_job(seed=1)
    return job


def train(job: JobFolder, **runtime: Any) -> dict[str, Any]:
    return pretrain.run(parse("pretrain", {**CONFIG, "runtime": {**RUNTIME, **runtime}}), job.path)


def weights(job: JobFolder) -> dict[str, torch.Tensor]:
    return dict(torch.load(job.path / "encoder.pt", weights_only=True))


def curve(job: JobFolder) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in job.metrics()]


def assert_same(job: JobFolder, reference: JobFolder) -> None:
    actual, expected = weights(job), weights(reference)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in actual)
    assert curve(job) == curve(reference)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    torch.set_num_threads(1)
    job = folder(tmp_path_factory.mktemp("whole") / "pretrain" / "a")
    train(job, checkpoint_minutes=10)
    assert [step for step, _ in curve(job)] == list(range(1, STEPS + 1))
    return job


@pytest.mark.parametrize("every_step", [True, False])
def test_a_job_killed_at_any_step_ends_bit_equal(uninterrupted: JobFolder, tmp_path: Path, every_step: bool) -> None:
    """SIGKILL in the first epoch and again in the second; with and without a checkpoint at every step."""
    job = folder(tmp_path / "pretrain" / "b")
    runtime = {**RUNTIME, "checkpoint_minutes": 1e-9 if every_step else 0.004}
    settings = json.dumps({**CONFIG, "runtime": runtime})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    for kill_at in (3, 7):
        child = subprocess.Popen([sys.executable, "-c", CHILD, settings, str(job.path)], env=environment)
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            if any(line["step"] >= kill_at for line in job.metrics()):
                break
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not job.done
    train(job, checkpoint_minutes=10)
    assert_same(uninterrupted, job)


def test_a_stop_signal_saves_at_the_step_and_the_job_resumes(uninterrupted: JobFolder, tmp_path: Path) -> None:
    job = folder(tmp_path / "pretrain" / "c")
    interrupt.request()
    with pytest.raises(interrupt.Interrupted, match="step 1 of 10"):
        train(job, checkpoint_minutes=10)
    assert job.status["state"] == "interrupted"
    interrupt.clear()
    train(job, checkpoint_minutes=10)
    assert job.status["state"] == "done"
    assert_same(uninterrupted, job)


def test_a_damaged_checkpoint_falls_back_with_a_warning(
    uninterrupted: JobFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = folder(tmp_path / "pretrain" / "d")
    for _ in range(2):
        interrupt.request()
        with pytest.raises(interrupt.Interrupted):
            train(job, checkpoint_minutes=10)
        interrupt.clear()
    _, newest = Checkpoints(job.path / "checkpoint").paths()
    newest.write_bytes(newest.read_bytes()[:-1000])
    train(job, checkpoint_minutes=10)
    assert "damaged" in caplog.text and newest.name in caplog.text
    assert_same(uninterrupted, job)


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": torch.tensor(step)})
    assert [path.name for path in checkpoints.paths()] == ["step-000000002.pt", "step-000000003.pt"]
    assert len(list(tmp_path.iterdir())) == 4  # each with its digest, nothing else


def test_workers_threads_and_logging_change_no_weight(uninterrupted: JobFolder, tmp_path: Path) -> None:
    job = folder(tmp_path / "pretrain" / "e")
    train(job, workers=2, log_every=3, monitor_every=1)
    actual, expected = weights(job), weights(uninterrupted)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert [line["step"] for line in job.metrics() if "knn_top1" in line] == [5, 10]


def test_a_non_finite_loss_stops_the_job_with_step_and_values(tmp_path: Path) -> None:
    job = folder(tmp_path / "pretrain" / "f")
    with pytest.raises(TrainingError, match=r"non-finite loss at step \d+ \(epoch .*loss .*clustering_loss .*nan"):
        pretrain.run(parse("pretrain", {**CONFIG, "optimizer": {"lr": 1e9, "weight_decay": 1e9}}), job.path)
    assert not job.done and not (job.path / "encoder.pt").exists()


def test_a_torn_metrics_line_and_a_stale_temp_file_do_no_harm(uninterrupted: JobFolder, tmp_path: Path) -> None:
    job = folder(tmp_path / "pretrain" / "g")
    interrupt.request()
    with pytest.raises(interrupt.Interrupted):
        train(job, checkpoint_minutes=10)
    interrupt.clear()
    with open(job.metrics_path, "a") as file:
        file.write('{"step": 2, "epo')
    (job.path / "checkpoint" / ".step-000000002.pt.1.tmp").write_bytes(b"half")
    train(job, checkpoint_minutes=10)
    assert not list((job.path / "checkpoint").iterdir())
    assert_same(uninterrupted, job)
