"""run.py for real: a whole tiny Table 8, twice; two orchestrators at once; a failing job; what is refused early."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.orchestrator import (
    PRETRAIN,
    PROBE,
    RANDOM,
    ROOT,
    borrow,
    cpu_seconds,
    jobs,
    named,
    prepared_store,
    refused,
    run,
    start,
    table8,
    whole_table,
)
from helpers.small_cifar import small_cifar
from PIL import Image
from torchvision.models.resnet import BasicBlock, ResNet

from orchestrate.jobs.snapshot import stage_digest

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def whole(template: Path) -> tuple[Path, Done]:
    return whole_table(template)


def snapshot(store: Path) -> dict[str, int]:
    """mtimes of every file in the job folders."""
    return {str(path): path.lstat().st_mtime_ns for job in jobs(store) for path in job.path.rglob("*")}


# -- a whole table ----------------------------------------------------------------------------------------------------
def test_a_whole_table_runs_to_the_end(whole: tuple[Path, Done]) -> None:
    store, done = whole
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "" and done.stdout.count(" done     ") == 7
    assert sorted(job.job["name"] for job in jobs(store)) == sorted(
        [f"{stage} resnet10 textures m={m} seed 0" for stage in ("pretrain", "linear") for m in (2, 3, 4)]
        + ["linear resnet10 textures random init seed 0"]
    )


def test_every_job_folder_is_complete(whole: tuple[Path, Done]) -> None:
    for job in jobs(whole[0]):
        assert (job.status["state"], len(job.status["attempts"])) == ("done", 1)
        assert (
            job.result["metrics"] and job.result["seconds"] > 0 and job.result["versions"]["torch"] == torch.__version__
        )
        steps = [line["step"] for line in job.metrics()]
        assert steps == sorted(set(steps)) and steps[-1] == (20 if job.job["stage"] == "pretrain" else 4)
        assert list((job.path / "logs").glob("*.out")) and not list((job.path / "checkpoint").iterdir())
        assert not [path.name for path in job.path.rglob("*.tmp")]


def test_only_its_owner_can_read_a_job_folder(whole: tuple[Path, Done]) -> None:
    for job in jobs(whole[0]):
        folders = [job.path, *(path for path in job.path.iterdir() if path.is_dir() and not path.is_symlink())]
        assert len(folders) == 4
        assert {oct(folder.stat().st_mode & 0o777) for folder in folders} == {"0o700"}


def test_a_job_records_its_code_commit_and_data(whole: tuple[Path, Done]) -> None:
    fingerprints = set()
    for job in jobs(whole[0]):
        values, tree = job.job, (job.path / "source").resolve()
        assert tree.parent == (whole[0] / "source").resolve() and (tree / "jigclu" / "augment.py").exists()
        assert values["source_digest"] == stage_digest(values["stage"], tree)
        assert re.fullmatch("[0-9a-f]{40}" if (ROOT / ".git").exists() else "", values["commit"])
        assert re.fullmatch("[0-9a-f]{16}.*", values["data_fingerprint"])
        fingerprints.add((values["stage"], values["data_fingerprint"]))
    assert len(fingerprints) == 2


def test_the_recorded_command_plans_the_same_jobs(whole: tuple[Path, Done]) -> None:
    """... and finds all of them cached."""
    (command,) = {job.job["command"] for job in jobs(whole[0])}
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("jigclu", "run")
    output = run(whole[0], [*words, "--cluster", "local", "--dry-run"]).stdout
    assert "7 jobs, 7 done, 0 to run" in output and all(f"{job.id}  " in output for job in jobs(whole[0]))


def test_a_pretraining_leaves_a_torchvision_encoder_and_a_picture(whole: tuple[Path, Done]) -> None:
    backbone = ResNet(BasicBlock, [1, 1, 1, 1])  # ResNet-10
    backbone.fc = torch.nn.Identity()  # type: ignore[assignment]
    for job in jobs(whole[0], "pretrain"):
        weights = torch.load(job.path / "encoder.pt", weights_only=True)
        assert weights.keys() == {name for name in backbone.state_dict() if not name.startswith("fc.")}
        backbone.load_state_dict(weights)
        with Image.open(job.path / "figures" / "montage.png") as picture:
            assert picture.format == "PNG" and min(picture.size) >= 3 * 32


def test_every_cell_is_filled_by_one_job(whole: tuple[Path, Done]) -> None:
    uses = {use["cell"]: (job, use) for job in jobs(whole[0], "linear") for use in job.job["uses"]}
    assert uses.keys() == {"m=2", "m=3", "m=4", "random"}
    for job, use in uses.values():
        assert (use["experiment"], use["scale"], use["protocol"]) == ("table8", "smoke", "official")
        assert 0 <= job.result["metrics"][use["metric"]] <= 100


def test_mlflow_has_every_job_and_every_cell(whole: tuple[Path, Done]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{whole[0]}/mlflow.db")

    def runs(name: str) -> list[Any]:
        return list(client.search_runs([client.get_experiment_by_name(name).experiment_id]))

    found = {run.data.tags["jigclu.job"]: run for run in runs("jigclu-smoke")}
    assert found.keys() == {job.id for job in jobs(whole[0])}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for job in jobs(whole[0], "pretrain"):
        shown = [file.path for file in client.list_artifacts(found[job.id].info.run_id, "figures")]
        assert shown == [f"figures/{name}.png" for name in ("inputs", "montage", "patches", "recovery", "split")]
    cells = {run.data.tags["jigclu.cell"]: run for run in runs("jigclu-smoke-tables") if "jigclu.cell" in run.data.tags}
    assert cells.keys() == {"m=2", "m=3", "m=4", "random"}
    values = {key: json.loads(run.data.tags["jigclu.values"]) for key, run in cells.items()}
    assert all(cells[key].data.metrics["value"] == pytest.approx(value[0]) for key, value in values.items())


def test_a_second_run_starts_nothing_changes_nothing_and_is_quick(whole: tuple[Path, Done]) -> None:
    before, used, began = snapshot(whole[0]), cpu_seconds(), time.monotonic()
    done = run(whole[0], table8())
    wall, used = time.monotonic() - began, cpu_seconds() - used
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 7 jobs are done already" in done.stdout and " start " not in done.stdout
    assert snapshot(whole[0]) == before
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert used < 1.5 and (wall < 2 or busy), f"{used:.2f} s of CPU, {wall:.2f} s in all"


# -- two at once ------------------------------------------------------------------------------------------------------
def test_two_orchestrators_at_once_run_every_job_once(whole: tuple[Path, Done], tmp_path: Path, template: Path) -> None:
    store = prepared_store(tmp_path / "runs", template)
    borrow(whole[0], store, but=[PRETRAIN, PROBE])
    both = [start(store, table8()) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert [(job.status["state"], len(job.status["attempts"])) for job in jobs(store)] == [("done", 1)] * 7
    for job in (named(store, PRETRAIN), named(store, PROBE)):
        assert sum(text.count(f" start    {job.id}") for text in outputs) == 1, "\n".join(outputs)
        assert len(list((job.path / "logs").glob("*_submitted.pkl"))) == 1


# -- a job that fails -------------------------------------------------------------------------------------------------
def test_a_failed_job_is_named_stops_no_other_and_is_tried_again(
    whole: tuple[Path, Done], tmp_path: Path, template: Path
) -> None:
    store = prepared_store(tmp_path / "runs", template)
    borrow(whole[0], store, but=[PRETRAIN, PROBE, RANDOM])
    done = run(store, table8(pretrain__runtime__device="cuda"))  # there is no GPU
    assert done.returncode == 1, done.stdout + done.stderr
    pretrain, probe, random = (named(store, name) for name in (PRETRAIN, PROBE, RANDOM))
    message = "RuntimeError: runtime.device is cuda, but torch sees no GPU here"
    assert (pretrain.status["state"], pretrain.status["message"]) == ("failed", message)
    assert f" failed   {pretrain.id}  {PRETRAIN}: {message}  (log: {pretrain.path / 'logs'})" in done.stdout
    assert f" skipped  {probe.id}  {PROBE}: upstream did not finish" in done.stdout
    assert probe.status["state"] == "pending" and not probe.metrics_path.exists()
    assert random.done and f" done     {random.id}" in done.stdout
    again = run(store, table8())
    assert again.returncode == 0, again.stdout + again.stderr
    assert pretrain.done and probe.done and len(random.status["attempts"]) == 1
    assert (pretrain.status["state"], pretrain.status["message"]) == ("done", "")


# -- refused before anything starts -----------------------------------------------------------------------------------
def nothing_started(store: Path) -> bool:
    return not [path for path in store.glob("*") if not path.name.startswith((".", "mlflow"))]


def test_missing_data_is_reported_with_the_folder_and_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "runs",
        ["table8", "--scale", "mini", "--cluster", "local"],
        f"looked in {tmp_path / 'empty' / 'imagenette' / 'train'}",
        "jigclu data get imagenette",
        "JIGCLU_DATA",
        JIGCLU_DATA=str(tmp_path / "empty"),
    )
    assert nothing_started(tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("file", ["cannot be read", "Not a directory"]),
        ("file/runs", ["cannot be read", "Not a directory"]),
        ("dangling", ["not writable", "File exists"]),  # a link to a disk that is not mounted
    ],
)
def test_a_store_that_cannot_be_used_is_reported(name: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "runs")
    words = ["table8", "--scale", "smoke", "--cluster", "local"]
    refused(tmp_path / name, words, f"the store {tmp_path / name} ", "set JIGCLU_STORE", *expected, cwd=tmp_path)
    assert (tmp_path / "file").read_text() == "in the way" and not (tmp_path / "disk").exists()


def test_fewer_images_than_a_batch_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "runs", table8(pretrain__data__train_images=9), "9 images", "batch of 10")
    assert nothing_started(tmp_path / "runs")


def test_a_tracking_server_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    server = "http://127.0.0.1:9"
    words = ["table8", "--scale", "smoke", "--cluster", "local"]
    refused(
        tmp_path / "runs", words, server, "does not answer", "unset MLFLOW_TRACKING_URI", MLFLOW_TRACKING_URI=server
    )
    assert nothing_started(tmp_path / "runs")


def test_too_small_patches_are_refused(tmp_path: Path) -> None:
    words = table8(pretrain__image_size=8)
    refused(tmp_path / "runs", words, "image_size 8", "patches of", "at least 8 are needed")
    assert nothing_started(tmp_path / "runs")


def test_a_part_of_cifar_is_not_accepted_as_the_whole(tmp_path: Path) -> None:
    small_cifar(tmp_path / "data")
    words = ["table5", "--cells", "linear random CIFAR-10", "--scale", "paper", "--cluster", "local"]
    refused(tmp_path / "runs", words, "not the official set", "data.train_images", JIGCLU_DATA=str(tmp_path / "data"))
