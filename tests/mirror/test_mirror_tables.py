"""Tables in MLflow, and the tracking store itself: real stores, a real server, an unreachable one."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.mlflow import cells, client, in_new_process, log_steps, make_job, run_of, runs, steps, use

from jigclu.config import ConfigError
from jigclu.files import locked
from jigclu.job_folder import JobFolder
from orchestrate import mirror


def test_a_table_has_every_cell_of_the_ledger(store: Path) -> None:
    make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")]).write_result({"top1": 61.0})
    make_job(store, "bbbbbbbbbbbb", uses=[use("m=3")]).set_status("running")
    mirror.sync(store)
    found = cells(store)
    assert {key: run.data.tags["jigclu.state"] for key, run in found.items()} == {
        "m=2": "done",
        "m=3": "running",
        "m=4": "not run",
        "random": "not run",
        "random, BN calibrated": "not run",
        "m=3 cell share": "not run",
        "m=4 cell share": "not run",
    }
    done = found["m=2"]
    assert done.data.metrics == {"value": 61.0, "n": 1.0, "printed": 80.9, "difference": pytest.approx(-19.9)}
    job_run = next(run for run in runs(store) if run.data.tags["jigclu.job"] == "aaaaaaaaaaaa")
    assert done.data.tags["jigclu.jobs"] == "aaaaaaaaaaaa" and done.data.tags["jigclu.job_runs"] == job_run.info.run_id
    assert found["m=4"].data.metrics == {"n": 0.0, "printed": 70.1} and "printed" not in found["random"].data.metrics
    (parent,) = [run for run in runs(store, "jigclu-mini-tables") if "jigclu.cell" not in run.data.tags]
    assert parent.info.run_name == "table8 official" and "1 of 7 cells done" in parent.data.tags["mlflow.note.content"]
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}


def test_cells_that_no_job_fills_say_why_and_do_not_count(store: Path) -> None:
    # PIRL is cited: an old job that filled it does not count.
    make_job(store, "aaaaaaaaaaaa", uses=[use("JigClu", experiment="table1"), use("PIRL", experiment="table1")])
    JobFolder(store / "linear" / "aaaaaaaaaaaa").write_result({"top1": 61.0})
    make_job(store, "bbbbbbbbbbbb", uses=[use("after", experiment="table7")]).set_status("running")
    mirror.sync(store)
    found = cells(store, table="table1")
    assert found["JigClu"].data.metrics["value"] == 61.0 and found["MoCo"].data.tags["jigclu.state"] == "not run"
    pirl = found["PIRL"]
    assert pirl.data.tags["jigclu.state"] == "cited" and pirl.info.status == "FINISHED"
    assert pirl.data.metrics == {"n": 0.0, "printed": 63.6} and pirl.data.tags["jigclu.jobs"] == ""
    assert "Cited: [26]" in pirl.data.tags["mlflow.note.content"]
    montage = cells(store, table="table7")["montage"]
    assert montage.data.tags["jigclu.state"] == "not applicable" and "printed" not in montage.data.metrics
    assert "Not applicable: a random crop" in montage.data.tags["mlflow.note.content"]
    parents = {
        run.info.run_name: run for run in runs(store, "jigclu-mini-tables") if "jigclu.cell" not in run.data.tags
    }
    assert "1 of 27 cells done" in parents["table1 official"].data.tags["mlflow.note.content"]
    assert "0 of 5 cells done" in parents["table7 official"].data.tags["mlflow.note.content"]


def test_time_and_memory_have_their_own_units_and_say_how_they_were_measured(store: Path) -> None:
    uses = [
        use("montage time", experiment="table6", metric="hours"),
        use("montage memory", experiment="table6", metric="peak_memory_mb"),
    ]
    folder = make_job(store, "aaaaaaaaaaaa", stage="pretrain", uses=uses)
    folder.write_result({"hours": 0.5, "peak_memory_mb": 900.0}, limiter="loader", memory_kind="resident")
    mirror.sync(store)
    time_, memory = (cells(store, table="table6")[f"montage {what}"] for what in ("time", "memory"))
    assert time_.data.metrics["value"] == 0.5 and "printed 5.7 h" in time_.data.tags["mlflow.note.content"]
    assert memory.data.metrics["value"] == 900.0 and "printed 3000 MB" in memory.data.tags["mlflow.note.content"]
    assert time_.data.tags["jigclu.measured"] == "limited by the loader"
    assert memory.data.tags["jigclu.measured"] == "resident memory of the process"


def test_several_seeds_give_mean_and_standard_deviation(store: Path) -> None:
    values = [60.0, 61.0, 63.5]
    folders = [make_job(store, f"{seed:012x}", seed=seed, uses=[use("m=2")]) for seed in range(3)]
    folders[0].write_result({"top1": values[0]})
    mirror.sync(store)
    assert cells(store)["m=2"].data.tags["jigclu.state"] == "pending" and "std" not in cells(store)["m=2"].data.metrics
    for folder, value in zip(folders[1:], values[1:], strict=True):
        folder.write_result({"top1": value})
    mirror.sync(store)
    cell = cells(store)["m=2"]
    assert cell.data.metrics["value"] == statistics.fmean(values) and cell.data.metrics["n"] == 3
    assert cell.data.metrics["std"] == round(statistics.stdev(values), 2)
    assert json.loads(cell.data.tags["jigclu.values"]) == values and cell.data.tags["jigclu.seeds"] == "[0, 1, 2]"
    assert len(client(store).get_metric_history(cell.info.run_id, "printed")) == 1


def test_a_job_of_several_tables_fills_all_and_is_one_run(store: Path) -> None:
    make_job(store, "aaaaaaaaaaaa", uses=[use("m=2"), use("m=2", "paper"), use("m=2", variant="linear.epochs=3")])
    mirror.sync(store)
    assert len(runs(store)) == 1 and len(runs(store, "jigclu-mini-tables")) == 3 * 8
    JobFolder(store / "linear" / "aaaaaaaaaaaa").write_result({"top1": 61.0})
    mirror.sync(store)
    for tags in ({"protocol": "paper"}, {"protocol": "official", "variant": ""}, {"variant": "linear.epochs=3"}):
        assert cells(store, **tags)["m=2"].data.metrics["value"] == 61.0


def test_of_two_recipes_for_one_seed_the_one_planned_later_fills_the_cell(store: Path) -> None:
    old = make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")])
    old.write_result({"top1": 61.0})
    mirror.sync(store)
    os.utime(old.path / "job.json", (1, 1))
    new = make_job(store, "bbbbbbbbbbbb", uses=[use("m=2")])
    mirror.sync(store)
    cell = cells(store)["m=2"]
    assert cell.data.tags["jigclu.jobs"] == new.id and cell.data.tags["jigclu.values"] == "[]"
    assert math.isnan(cell.data.metrics["value"]) and cell.data.metrics["n"] == 0


# -- stores -----------------------------------------------------------------------------------------------------------
def test_two_syncs_at_once_on_a_fresh_store_both_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = make_job(tmp_path, "aaaaaaaaaaaa", uses=[use("m=2")])
    log_steps(folder, 0, 10)
    processes = [in_new_process(tmp_path) for _ in range(2)]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0 and "runs=9" in out and not err, err
    assert steps(tmp_path, folder) == [0, 10] and len(cells(tmp_path)) == 7


def test_prepare_with_nothing_to_do_is_nearly_free(store: Path) -> None:
    mirror.prepare(store)
    began = time.monotonic()
    mirror.prepare(store)
    assert time.monotonic() - began < 0.05


def test_a_busy_lock_is_not_waited_for(store: Path) -> None:
    make_job(store, "aaaaaaaaaaaa")
    with locked(store / ".mirror" / "lock"):
        assert mirror.sync(store, wait_for_lock=False).runs == 0
    assert mirror.sync(store, wait_for_lock=False).runs == 1


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db", "nonsense://x"])
def test_an_unreachable_tracking_store_is_one_line_within_seconds(
    store: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    log_steps(folder, 0)
    mirror.sync(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(mirror.MirrorError) as caught:
        mirror.sync(store)
    assert "\n" not in str(caught.value) and uri in str(caught.value)
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI|not usable"):
        mirror.prepare(store)
    side = mirror.SideMirror(folder.path, 0.01)
    side.start()
    side.stop()
    assert time.monotonic() - began < 10
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    log_steps(folder, 10)
    mirror.sync(store)
    assert steps(store, folder) == [0, 10]


@pytest.fixture
def server(tmp_path: Path, template: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copy(template, tmp_path / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--port", str(port), "--workers", "1"]
    with open(tmp_path / "server.log", "w") as log:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def test_a_side_mirror_sends_a_running_job_to_a_server(
    store: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    folder = make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")])
    log_steps(folder, 0, 10)
    side = mirror.SideMirror(folder.path, 0.1)
    side.start()  # the server is not up yet: the thread keeps trying
    deadline = time.monotonic() + 150  # a fresh machine reads all of mlflow from a cold disk
    while not list(mirror.cursor_folder(store).glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    log_steps(folder, 20)
    folder.write_result({"top1": 61.0})
    side.stop(30)
    assert steps(store, folder) == [0, 10, 20] and run_of(store, folder).info.status == "FINISHED"
    assert "job.json" in {file.path for file in client(store).list_artifacts(run_of(store, folder).info.run_id)}
    mirror.sync(store)
    assert cells(store)["m=2"].data.metrics["value"] == 61.0
    client(store).delete_run(run_of(store, folder).info.run_id)
    folder.update_job(experiments=["table8", "table9"])
    mirror.sync(store)
    assert steps(store, folder) == [0, 10, 20] and len(cells(store)) == 7
