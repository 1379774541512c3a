"""Job folders, checkpoints and encoders that were copied, renamed, edited or replaced: never another job's number."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jigclu.config import METRICS, ConfigError, parse
from jigclu.files import UnreadableFile, write_json
from jigclu.job_folder import PERCENT, JobFolder
from jigclu.network import load_encoder
from jigclu.stages import knn, pretrain
from jigclu.training import interrupt
from jigclu.training.checkpoint import Checkpoints, load_verified, save_atomic
from orchestrate.jobs.staleness import EARLIER, Staleness, set_aside

COMMON: dict[str, Any] = {
    "data": {"name": "scenes", "canvas": 32, "train_images": 20, "val_images": 10},
    "backbone": "resnet18",
    "image_size": 32,
    "batch_size": 10,
    "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every": 1},
}
CONFIGS: dict[str, dict[str, Any]] = {"pretrain": {**COMMON, "epochs": 1}, "knn": {**COMMON, "resize": 36}}
STAGES: dict[str, Any] = {"pretrain": pretrain, "knn": knn}


def job(store: Path, stage: str, name: str, **fields: Any) -> JobFolder:
    folder = JobFolder(store / stage / name).create()
    config = parse(stage, CONFIGS[stage]).model_dump(mode="json")
    folder.update_job(id=name, stage=stage, config=config, **{"seed": 1, "upstream": [], **fields})
    return folder


def run(folder: JobFolder, **over: Any) -> dict[str, Any]:
    stage = folder.path.parent.name
    result: dict[str, Any] = STAGES[stage].run(parse(stage, {**CONFIGS[stage], **over}), folder.path)
    return result


def stopped(store: Path, stop_at: dict[int, str], name: str = "aaaa") -> JobFolder:
    folder = job(store, "pretrain", name)
    stop_at[1] = "stop"
    with pytest.raises(interrupt.Interrupted):
        run(folder)
    interrupt.clear()
    return folder


def write_sealed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


class Code:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


# -- checkpoints ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [{"seed": 2}, {"upstream": ["beef"]}])
def test_a_checkpoint_of_another_job_is_refused(
    change: dict[str, Any], tmp_path: Path, stop_at: dict[int, str]
) -> None:
    other = stopped(tmp_path, stop_at)
    mine = job(tmp_path, "pretrain", "bbbb", **change)
    shutil.copytree(other.path / "checkpoint", mine.path / "checkpoint", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match="pretrain bbbb: the checkpoint of step 1 is of a job with another"):
        run(mine)


@pytest.mark.parametrize(
    "change", [{"batch_size": 5}, {"epochs": 3}, {"precision": "bfloat16"}, {"method": {"name": "jigclu", "m": 3}}]
)
def test_a_resume_with_an_edited_config_is_refused(
    change: dict[str, Any], tmp_path: Path, stop_at: dict[int, str]
) -> None:
    folder = stopped(tmp_path, stop_at)
    with pytest.raises(ConfigError, match=f"another config, seed .* or remove {folder.path / 'checkpoint'}"):
        run(folder, **change)
    assert run(folder)["metrics"]


@pytest.mark.parametrize("state", [[1], {"network": {}}, {"step": -1}, {"step": "1"}, {"step": 2}])
def test_a_checkpoint_that_is_none_is_damaged(state: Any, tmp_path: Path) -> None:
    save_atomic(tmp_path / "step-000000001.pt", state)
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        Checkpoints(tmp_path).latest()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("network"), "its network is missing or of another type"),
        (lambda state: state.pop("seconds"), "its seconds is missing or of another type"),
        (lambda state: state.update(optimizer=[1]), "its optimizer is missing or of another type"),
        (lambda state: state["optimizer"].pop("state"), "its optimizer does not fit"),
        (lambda state: state["network"].popitem(), "its network does not fit: "),
        (lambda state: halve(state["network"]), r"network has \S+ as torch.float16, not torch.float32"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused(
    change: Callable[[dict[str, Any]], Any], expected: str, tmp_path: Path, stop_at: dict[int, str]
) -> None:
    folder = stopped(tmp_path, stop_at)
    (path,) = Checkpoints(folder.path / "checkpoint").paths()
    state = load_verified(path)[0]
    change(state)
    save_atomic(path, state)
    with pytest.raises(ConfigError, match=f"the checkpoint of step 1 cannot be used: {expected}") as error:
        run(folder)
    assert "to start from the beginning" in str(error.value) and "\n" not in str(error.value)


def halve(weights: dict[str, Any]) -> None:
    weights.update({key: value.half() for key, value in weights.items() if value.is_floating_point()})


def test_files_and_folders_that_changed_places_are_named(tmp_path: Path) -> None:
    folder = job(tmp_path, "pretrain", "aaaa")
    shutil.rmtree(folder.path / "checkpoint")
    (folder.path / "checkpoint").write_text("")
    with pytest.raises(UnreadableFile, match="checkpoint is a file, not a folder"):
        run(folder)
    (folder.path / "checkpoint").unlink()
    folder.metrics_path.mkdir()
    (folder.path / "checkpoint").symlink_to("scratch")
    with pytest.raises(UnreadableFile, match=r"checkpoint is a link to scratch, which is no folder: mount it, or"):
        run(folder)
    (folder.path / "checkpoint").unlink()
    (tmp_path / "linear").write_text("")
    with pytest.raises(UnreadableFile, match=rf"^{tmp_path / 'linear'} is a file, not a folder"):
        JobFolder(tmp_path / "linear" / "abcd").create()
    with pytest.raises(UnreadableFile, match=r"metrics\.jsonl is a folder, not a file"):
        run(folder)
    assert list(folder.metrics()) == []


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("seed", 2**64, "a whole number from 0 to 2\\^64 - 1"),
        ("upstream", ["../knn/beef"], "a list of job ids"),
        ("upstream", [".."], "a list of job ids"),
        ("upstream", [""], "a list of job ids"),
    ],
)
def test_fields_of_job_json_that_no_job_has_are_named(field: str, value: Any, expected: str, tmp_path: Path) -> None:
    folder = job(tmp_path, "knn", "aaaa")
    write_json(folder.path / "job.json", {**folder.job, field: value})
    with pytest.raises(UnreadableFile, match=f"{field} is .* and must be {expected}"):
        run(folder)


def test_a_job_json_that_is_a_link_to_itself_is_named(tmp_path: Path) -> None:
    folder = job(tmp_path, "knn", "aaaa")
    (folder.path / "job.json").unlink()
    (folder.path / "job.json").symlink_to("job.json")
    with pytest.raises(UnreadableFile, match="is a link to itself"):
        run(folder)


def test_a_file_with_code_is_refused_not_run_and_no_advice_is_given(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"step": 1, "code": Code(tmp_path / "ran")}, buffer)
    for content in (buffer.getvalue(), b"", b"\x93NUMPY", buffer.getvalue()[:500]):
        write_sealed(tmp_path / "encoder.pt", content)
        with pytest.raises(ValueError, match=r"encoder\.pt is no file of this program") as error:
            load_verified(tmp_path / "encoder.pt")
        assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_lines_that_are_there_twice_are_in_the_curve_once(tmp_path: Path, stop_at: dict[int, str]) -> None:
    folder = stopped(tmp_path, stop_at)
    folder.metrics_path.write_text(folder.metrics_path.read_text() * 2)
    run(folder)
    assert [line["step"] for line in folder.metrics()] == [1, 2]


# -- encoders ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_an_encoder_of_another_type_is_refused(kind: torch.dtype) -> None:
    weights = {key: value.to(kind) for key, value in load_encoder("resnet18", None).weights().items()}
    with pytest.raises(ConfigError, match=rf"conv1.weight \(64 x 3 x 7 x 7 {str(kind)[6:]}, expected .* float32\)"):
        load_encoder("resnet18", weights)


@pytest.mark.parametrize("wrong", [[1], {"state_dict": {}}, {"conv1.weight": "x"}, {1: torch.zeros(1)}])
def test_an_encoder_that_is_none_is_named(wrong: Any, tmp_path: Path) -> None:
    folder = job(tmp_path, "knn", "abcd", upstream=["beef"])
    path = tmp_path / "pretrain" / "beef" / "encoder.pt"
    path.parent.mkdir(parents=True)
    save_atomic(path, wrong)
    with pytest.raises(ConfigError) as error:
        run(folder)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_encoder_of_zeros_is_refused(tmp_path: Path) -> None:
    folder = job(tmp_path, "knn", "abcd", upstream=["beef"])
    path = tmp_path / "pretrain" / "beef" / "encoder.pt"
    path.parent.mkdir(parents=True)
    save_atomic(path, {key: value * 0 for key, value in load_encoder("resnet18", None).weights().items()})
    with pytest.raises(ConfigError, match="has only zeros: pretrain it again"):
        run(folder)


# -- results ----------------------------------------------------------------------------------------------------------
def test_a_finished_folder_under_another_id_is_not_done(tmp_path: Path) -> None:
    folder = job(tmp_path, "knn", "aaaa")
    folder.write_result({"top1": 50.0})
    shutil.copytree(folder.path, tmp_path / "knn" / "bbbb")
    copied = JobFolder(tmp_path / "knn" / "bbbb")
    assert folder.done and not copied.done
    assert "result.json is of job aaaa: the folder was copied or renamed" in copied.problems


def test_a_result_without_numbers_is_none(tmp_path: Path) -> None:
    folder = job(tmp_path, "knn", "aaaa")
    (folder.path / "result.json").write_text('{"metrics": {}}')
    assert not folder.done and folder.problems == ["result.json has no metrics"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"metrics": {"top1": 250.0}}', "result.json: top1 is 250.0, and must be from 0 to 100 (percent)"),
        ('{"metrics": {"last_top1": -1}}', "result.json: last_top1 is -1, and must be from 0 to 100 (percent)"),
        ('{"metrics": {"ap_small": 101}}', "result.json: ap_small is 101, and must be from 0 to 100 (percent)"),
        ('{"metrics": {"top1": 50}, "metrics": {"top1": 99}}', "result.json has the key 'metrics' twice"),
        ('{"metrics": {"top1": 50, "top1": 99}}', "result.json has the key 'top1' twice"),
    ],
)
def test_a_result_that_no_stage_writes_is_none(text: str, problem: str, tmp_path: Path) -> None:
    folder = job(tmp_path, "knn", "aaaa")
    (folder.path / "result.json").write_text(text)
    assert not folder.done and folder.problems == [problem]


OTHERS = {
    "best_epoch",
    "alignment",
    "uniformity",
    "rankme",
    "object_chance",
    "person_chance",
}  # no percentage, or no score


def test_percentages_are_known_by_their_names(tmp_path: Path) -> None:
    names = {name for names in METRICS.values() for name in names} - OTHERS
    assert names and all(map(PERCENT.fullmatch, names)) and not any(map(PERCENT.fullmatch, OTHERS))
    with pytest.raises(ValueError, match=r"the result is not written: person_ap50 is 101, and must be from 0 to 100"):
        job(tmp_path, "knn", "aaaa").write_result({"person_ap50": 101})


def test_a_result_from_another_encoder_is_stale_whatever_the_clocks_say(tmp_path: Path) -> None:
    encoder, probe = job(tmp_path, "pretrain", "beef"), job(tmp_path, "knn", "abcd", upstream=["beef"])
    run(encoder)
    run(probe)
    assert [Staleness().reason(folder) for folder in (encoder, probe)] == ["", ""]
    encoder.write_result(encoder.result["metrics"])  # later, but the same encoder
    assert Staleness().reason(probe) == ""
    kept = (encoder.path / "encoder.pt").read_bytes()
    save_atomic(encoder.path / "encoder.pt", load_encoder("resnet18", None).weights())
    assert Staleness().reason(probe) == "the encoder of upstream beef has changed"
    write_sealed(encoder.path / "encoder.pt", kept)
    (encoder.path / "encoder.pt").unlink()
    assert Staleness().reason(encoder) == "its encoder.pt is missing"
    (probe.path / "result.json").unlink()
    with pytest.raises(FileNotFoundError, match="put it back, or run the command again with --rerun-stale"):
        run(probe)


def test_results_set_aside_within_one_second_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrate.jobs.staleness.time.strftime", lambda form: "20261128-120000")
    folder = job(tmp_path, "knn", "aaaa")
    for _ in range(2):
        run(folder)
        set_aside([folder])
    assert len(list((folder.path / EARLIER).glob("*/result.json"))) == 2
