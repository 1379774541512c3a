"""A resume on other data or on another encoder is refused, and nothing that is not finite is saved."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.packs import COUNTS, folders, register

from jigclu.config import ConfigError, parse
from jigclu.data.loader import Unreadable
from jigclu.job_folder import JobFolder
from jigclu.network import load_encoder
from jigclu.stages import finetune, knn, linear, pretrain
from jigclu.training import interrupt
from jigclu.training.checkpoint import Checkpoints, first_not_finite, save_atomic
from jigclu.training.session import Session, TrainingError

COMMON: dict[str, Any] = {
    "data": {"name": "imagenette", "canvas": 32},
    "backbone": "resnet18",
    "image_size": 32,
    "batch_size": 10,
    "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1},
}
SHORT = {"resize": 36}
CONFIGS: dict[str, dict[str, Any]] = {
    "pretrain": {**COMMON, "epochs": 1},
    "linear": {**COMMON, **SHORT, "epochs": 1, "milestones": []},
    "finetune": {**COMMON, **SHORT, "epochs": 1},
    "knn": {**COMMON, **SHORT},
}
STAGES: dict[str, Any] = {"pretrain": pretrain, "linear": linear, "finetune": finetune, "knn": knn}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    register(monkeypatch, COUNTS)
    monkeypatch.setenv("JIGCLU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path / "root"))
    return folders(tmp_path / "root", COUNTS)


def run(stage: str, job: JobFolder) -> dict[str, Any]:
    result: dict[str, Any] = STAGES[stage].run(parse(stage, CONFIGS[stage]), job.path)
    return result


def stopped(stage: str, path: Path, stop_at: dict[int, str], **fields: Any) -> JobFolder:
    job = JobFolder(path / stage / "abcd").create()
    job.update_job(seed=1, **fields)
    stop_at[1] = "stop"
    with pytest.raises(interrupt.Interrupted):
        run(stage, job)
    interrupt.clear()
    return job


def encoder(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomic(path, load_encoder("resnet18", None).weights())


@pytest.mark.parametrize("stage", ["pretrain", "linear", "finetune"])
def test_a_resume_on_other_data_is_refused_and_the_record_stays(
    stage: str, root: Path, tmp_path: Path, stop_at: dict[int, str]
) -> None:
    job = stopped(stage, tmp_path, stop_at)
    before = job.job
    path = next((root / "imagenette/train/n1").iterdir())
    kept = path.read_bytes()
    path.write_bytes(kept + b"more")
    with pytest.raises(ConfigError) as error:
        run(stage, job)
    message = str(error.value)
    assert message.startswith(f"{stage} abcd: the checkpoint of step 1 was trained on other data than is there now")
    assert f"data_fingerprint {before['data_fingerprint']}, now " in message and "\n" not in message
    assert f"put the data back, or remove {job.path / 'checkpoint'} to start" in message
    assert job.job == before
    path.write_bytes(kept)
    assert run(stage, job)["metrics"]
    path.write_bytes(kept + b"more")
    (job.path / "result.json").unlink()
    shutil.rmtree(job.path / "checkpoint")
    run(stage, job)
    assert job.job["data_fingerprint"] != before["data_fingerprint"]


def test_an_older_checkpoint_resumes_with_a_warning(
    root: Path, tmp_path: Path, stop_at: dict[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    job = stopped("pretrain", tmp_path, stop_at)
    checkpoints = Checkpoints(job.path / "checkpoint")
    state = checkpoints.latest()
    assert state
    del state["data_fingerprint"]
    checkpoints.save(state.pop("step"), state)
    with caplog.at_level(logging.WARNING, "jigclu"):
        run("pretrain", job)
    assert "pretrain abcd: the checkpoint is of an older version, without data_fingerprint" in caplog.text


def test_a_resume_on_another_encoder_is_refused(root: Path, tmp_path: Path, stop_at: dict[int, str]) -> None:
    path = tmp_path / "pretrain" / "beef" / "encoder.pt"
    encoder(path, 1)
    job = stopped("linear", tmp_path, stop_at, upstream=["beef"])
    before = job.job["encoder_digest"]
    encoder(path, 2)
    with pytest.raises(ConfigError, match=f"on another upstream encoder than is there now .encoder_digest {before}"):
        run("linear", job)
    assert job.job["encoder_digest"] == before


# -- what is not finite -----------------------------------------------------------------------------------------------
def poison(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The weights are no longer finite after that step, although every loss was."""
    tick = Session.tick

    def ticked(session: Session, *arguments: Any, **keywords: Any) -> None:
        if session.step + 1 == step:
            tensor = next(iter(session.state()[next(iter(session.state()))].values()))
            tensor.data.fill_(float("nan"))
        tick(session, *arguments, **keywords)

    monkeypatch.setattr(Session, "tick", ticked)


@pytest.mark.parametrize(("stage", "last"), [("pretrain", 4), ("linear", 4), ("finetune", 4)])
def test_weights_that_are_not_finite_are_not_saved(
    stage: str, last: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JobFolder(tmp_path / stage / "abcd").create()
    job.update_job(seed=1)
    poison(monkeypatch, last)
    with pytest.raises(TrainingError, match=f"weights not finite after step {last} .the first: "):
        run(stage, job)
    assert not job.done and not (job.path / "encoder.pt").exists()


def test_a_checkpoint_that_is_not_finite_is_not_saved(root: Path, tmp_path: Path, stop_at: dict[int, str]) -> None:
    session = Session(tmp_path / "pretrain" / "abcd", parse("knn", CONFIGS["knn"]).runtime)  # type: ignore[attr-defined]
    session.begin(1, 2, lambda: {"network": {"weight": torch.tensor([1.0]), "count": torch.tensor(3)}})
    session.save()
    session.begin(1, 2, lambda: {"network": {"bn.running_var": torch.tensor([1.0, float("inf")])}})
    with pytest.raises(TrainingError, match=r"the first: network\.bn\.running_var"):
        session.save()
    with pytest.raises(TrainingError, match=r"the first: network\.bn\.running_var"):
        session.finish({"top1": 1.0})
    session.begin(1, 2, dict)
    with pytest.raises(TrainingError, match=r"the result is not finite \(top1 nan\)"):
        session.finish({"top1": float("nan"), "top5": 1.0})
    assert not session.folder.done


@pytest.mark.parametrize("stage", ["knn", "linear", "finetune"])
def test_an_encoder_that_is_not_finite_is_refused_by_name(stage: str, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "pretrain" / "beef" / "encoder.pt"
    weights = load_encoder("resnet18", None).weights()
    weights["layer1.0.bn1.running_var"][3] = float("inf")
    path.parent.mkdir(parents=True)
    save_atomic(path, weights)
    job = JobFolder(tmp_path / stage / "abcd").create()
    job.update_job(seed=1, upstream=["beef"])
    with pytest.raises(ConfigError, match=r"encoder.pt has values that are not finite .*layer1.0.bn1.running_var"):
        run(stage, job)


def test_features_that_are_not_finite_are_an_error(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "pretrain" / "beef" / "encoder.pt"
    weights = load_encoder("resnet18", None).weights()
    weights["bn1.running_var"].fill_(-1)  # finite, but its root is not
    path.parent.mkdir(parents=True)
    save_atomic(path, weights)
    job = JobFolder(tmp_path / "knn" / "abcd").create()
    job.update_job(seed=1, upstream=["beef"])
    with pytest.raises(TrainingError, match="the encoder gives 40 of 40 images features that are not finite"):
        run("knn", job)


def test_a_foreign_encoder_is_one_line(tmp_path: Path) -> None:
    weights = load_encoder("resnet18", None).weights()
    for wrong in (
        {f"module.{key}": value for key, value in weights.items()},
        {**weights, "fc.weight": torch.zeros(10, 512)},
        {"state_dict": weights},
    ):
        with pytest.raises(ConfigError, match="the encoder does not fit resnet18: ") as error:
            load_encoder("resnet18", wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"does not fit resnet50: .* the first is layer1.0.conv1.weight"):
        load_encoder("resnet50", weights)


def test_first_not_finite_looks_into_lists_and_dicts() -> None:
    nan, one = torch.tensor([float("nan")]), torch.tensor([1.0])
    assert first_not_finite({"a": one, "b": [one, {"c": nan}], "n": 3}) == "b.1.c"
    assert first_not_finite({"a": one, "b": "text", "c": None}) == ""


def test_unreadable_images_of_earlier_attempts_stay_in_the_result(
    root: Path, tmp_path: Path, stop_at: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jigclu.data.loader.MOST_UNREADABLE", 0.1)
    job = stopped("pretrain", tmp_path, stop_at)
    checkpoints = Checkpoints(job.path / "checkpoint")
    state = checkpoints.latest()
    assert state and state["unreadable"] == []
    checkpoints.save(state.pop("step"), {**state, "unreadable": ["n1/broken.JPEG"]})
    assert run("pretrain", job)["unreadable"] == ["n1/broken.JPEG"]
    assert len(Unreadable(["n1/broken.JPEG"])) == 1


def test_a_batch_of_one_value_per_channel_is_one_line(root: Path, tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "finetune" / "abcd").create()
    with pytest.raises(ConfigError, match=r"batch_size 1 on 1 rank.s. at image_size 32 gives batch norm one value"):
        finetune.run(parse("finetune", {**CONFIGS["finetune"], "batch_size": 1}), job.path)  # type: ignore[arg-type]
