"""The MLflow mirror of jobs, against real MLflow stores."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path

import pytest
from helpers.mlflow import cells, client, in_new_process, log_steps, make_job, points, run_of, steps, use

from orchestrate import mirror


def test_a_job_becomes_a_run_with_its_params_curve_result_and_files(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", upstream=["bbbbbbbbbbbb"], uses=[use("m=2")])
    log_steps(folder, 0, 10)
    (folder.path / "figures" / "montage.png").write_bytes(b"png")
    (folder.path / "correct.bits").write_bytes(b"\xf0")
    folder.write_result({"top1": 61.0}, seconds=5.0)
    mirror.sync(store)
    run = run_of(store, folder)
    assert run.info.run_name == "linear aaaaaaaaaaaa" and run.info.status == "FINISHED"
    assert (
        run.info.end_time == int(1000 * folder.result["finished"]) and run.info.end_time - run.info.start_time == 5000
    )
    assert run.data.params["data.name"] == "imagenette" and run.data.params["milestones"] == "[0.6, 0.8]"
    assert run.data.params["upstream"] == "bbbbbbbbbbbb"
    assert run.data.metrics["linear/result.top1"] == 61.0 and run.data.metrics["linear/top1/lr_0.1"] == 60.0
    lines = list(folder.metrics())
    assert points(store, folder) == [(line["step"], line["loss"], int(line["time"] * 1000)) for line in lines]
    assert run.data.tags["jigclu.experiments"] == "table8" and run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert "jigclu run table8" in run.data.tags["mlflow.note.content"]
    files = client(store).list_artifacts(run.info.run_id) + client(store).list_artifacts(run.info.run_id, "figures")
    names = {"job.json", "result.json", "correct.bits", "figures", "figures/montage.png"}
    assert {file.path for file in files} == names
    assert list((store / "mlartifacts").rglob("montage.png"))


@pytest.mark.parametrize(
    ("state", "status"),
    [("pending", "SCHEDULED"), ("running", "RUNNING"), ("interrupted", "KILLED"), ("failed", "FAILED")],
)
def test_every_state_has_its_run_status(store: Path, state: str, status: str) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    mirror.sync(store)
    folder.set_status(state, message="out of memory")
    mirror.sync(store)
    assert run_of(store, folder).info.status == status
    assert run_of(store, folder).data.tags["jigclu.state"] == state
    assert ("out of memory" in run_of(store, folder).data.tags["mlflow.note.content"]) == (
        status in ("KILLED", "FAILED")
    )
    folder.set_status("running")
    mirror.sync(store)
    assert run_of(store, folder).info.status == "RUNNING"


def test_second_sync_adds_nothing_and_leaves_mlflow_alone(store: Path) -> None:
    for index in range(100):
        folder = make_job(store, f"{index:012x}", uses=[use("m=2")], seed=index)
        log_steps(folder, 0, 1)
    first = mirror.sync(store)
    assert first.changed == first.runs == 100 + 8  # the table and its seven cells
    before = (store / "mlflow.db").read_bytes()
    second = mirror.sync(store)
    assert second.changed == 0 and second.runs == first.runs and second.seconds < 0.3
    process = in_new_process(store)
    assert "not imported" in process.communicate()[0]
    assert (store / "mlflow.db").read_bytes() == before


def test_a_heartbeat_alone_writes_nothing(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")])
    folder.set_status("running", epoch=1)
    mirror.sync(store)
    folder.set_status("running", epoch=2)
    assert mirror.sync(store).changed == 0


def test_a_growing_file_adds_only_its_new_complete_lines(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    log_steps(folder, 0, 10)
    mirror.sync(store)
    log_steps(folder, 20)
    folder.log(20, 2.0, knn=33.0)  # a second line of the same step, as a monitor writes it
    with open(folder.metrics_path, "a") as file:
        file.write('{"step": 30, "ti')
    mirror.sync(store)
    assert steps(store, folder) == [0, 10, 20] and steps(store, folder, "knn") == [20]
    with open(folder.metrics_path, "a") as file:
        file.write(f'me": {time.time()}, "loss": 0.5}}\n')
    mirror.sync(store)
    assert steps(store, folder) == [0, 10, 20, 30]


def test_a_long_curve_arrives_complete(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    log_steps(folder, *range(1200))
    mirror.sync(store)
    assert steps(store, folder) == list(range(1200))


@pytest.mark.parametrize("cut", [10, -1])
@pytest.mark.parametrize("seen_between", [True, False])
def test_a_curve_cut_back_on_resume_is_not_doubled(store: Path, cut: int, seen_between: bool) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    log_steps(folder, 0, 10, 20, 30)
    mirror.sync(store)
    before = points(store, folder)
    folder.cut_metrics(cut)
    if seen_between:
        mirror.sync(store)
    time.sleep(0.002)
    log_steps(folder, *[step for step in (0, 10, 20, 30, 40) if step > cut])
    mirror.sync(store)
    assert points(store, folder)[:-1] == before and steps(store, folder) == [0, 10, 20, 30, 40]


def test_a_curve_cut_back_and_regrown_past_the_cursor_is_complete(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    lines = [{"step": step, "epoch": 0.0, "time": 1700000000.123456 + step, "loss": 0.5} for step in range(10)]
    folder.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mirror.sync(store)
    folder.cut_metrics(1)
    with open(folder.metrics_path, "a") as file:  # shorter lines: the old offset is now inside the line of step 10
        file.writelines(
            json.dumps({"step": step, "time": 1800000000 + step, "loss": 0.5}) + "\n" for step in range(2, 30)
        )
    mirror.sync(store)
    assert steps(store, folder) == list(range(30))


def test_a_rerun_by_different_code_begins_a_new_run(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", source_digest="old")
    log_steps(folder, 0, 10)
    mirror.sync(store)
    old = run_of(store, folder).info.run_id
    folder.update_job(source_digest="new")
    folder.cut_metrics(-1)
    mirror.sync(store)
    folder.log(0, 0.0, loss=7.0)
    mirror.sync(store)
    assert run_of(store, folder).info.run_id != old
    assert [value for _, value, _ in points(store, folder)] == [7.0]


def test_a_resume_by_different_code_continues_its_run(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", source_digest="old")
    log_steps(folder, 0, 10, 20)
    mirror.sync(store)
    old = run_of(store, folder).info.run_id
    folder.update_job(source_digest="new")
    folder.cut_metrics(10)
    log_steps(folder, 20, 30)
    mirror.sync(store)
    assert run_of(store, folder).info.run_id == old and steps(store, folder) == [0, 10, 20, 30]


@pytest.mark.parametrize("damage", ["lost", "torn"])
def test_a_lost_cursor_adds_nothing_twice(store: Path, damage: str) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")])
    log_steps(folder, 0, 10, 20)
    folder.write_result({"top1": 61.0})
    mirror.sync(store)
    before, table = points(store, folder), {key: run.info.run_id for key, run in cells(store).items()}
    for path in mirror.cursor_folder(store).glob("*.json"):
        path.unlink() if damage == "lost" else path.write_text("{" if path.stem == folder.id else "{}")
    folder.cut_metrics(0)
    time.sleep(0.002)
    log_steps(folder, 10, 20, 30)
    mirror.sync(store)
    assert points(store, folder)[:-1] == before and steps(store, folder) == [0, 10, 20, 30]
    assert {key: run.info.run_id for key, run in cells(store).items()} == table
    assert len(client(store).get_metric_history(table["m=2"], "value")) == 1


def test_a_batch_logged_again_after_a_crash_adds_nothing(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    log_steps(folder, 0)
    mirror.sync(store)
    cursor = mirror.cursor_folder(store) / f"{folder.id}.json"
    old = cursor.read_bytes()
    log_steps(folder, 10, 20)
    folder.log(30, 3.0, loss=math.nan)
    mirror.sync(store)
    cursor.write_bytes(old)  # as if the pass had died between log_batch and its cursor
    log_steps(folder, 40)
    mirror.sync(store)
    assert steps(store, folder) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("recreated", [True, False])
def test_a_deleted_database_is_rebuilt_from_the_folders(store: Path, template: Path, recreated: bool) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")])
    log_steps(folder, 0, 10)
    folder.write_result({"top1": 61.0})
    report = mirror.sync(store)
    before = points(store, folder)
    (store / "mlflow.db").unlink()
    if recreated:
        shutil.copy(template, store / "mlflow.db")
    assert mirror.sync(store).changed == report.changed
    assert points(store, folder) == before and cells(store)["m=2"].data.metrics["value"] == 61.0


def test_a_deleted_run_comes_back(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    log_steps(folder, 0, 10)
    mirror.sync(store)
    client(store).delete_run(run_of(store, folder).info.run_id)
    mirror.sync(store)
    assert steps(store, folder) == [0, 10]


def test_nan_and_infinity_are_kept_as_nan(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")])
    for step, loss in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0]):
        folder.log(step, 0.0, loss=loss)
    with pytest.raises(ValueError, match="the result is not written: top1 is nan"):
        folder.write_result({"top1": math.nan})
    mirror.sync(store)
    values = {step: value for step, value, _ in points(store, folder)}
    assert values[0] == 1.0 and values[4] == 2.0 and all(math.isnan(values[step]) for step in (1, 2, 3))
    assert mirror.sync(store).changed == 0
