"""The MLflow mirror, against real MLflow stores."""

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
from typing import Any

import pytest

from jigclu.config import ConfigError
from jigclu.training.folder import JobFolder, write_json
from orchestrate import mirror

ROOT = Path(__file__).resolve().parent.parent
SYNC = "import sys; from pathlib import Path; from orchestrate import mirror; print(mirror.sync(Path(sys.argv[1])));"
SYNC += "print('imported' if 'mlflow' in sys.modules else 'not imported')"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty migrated database: making one takes seconds, copying it none."""
    store = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        mirror.prepare(store)
    return store / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose database is there and known to be migrated."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "runs"
    store.mkdir()
    shutil.copy(template, store / "mlflow.db")
    made = next(template.parent.glob(".mirror/*/prepared"))
    marker = store / ".mirror" / mirror.cursor_folder(store).name / "prepared"
    marker.parent.mkdir(parents=True)
    shutil.copy(made, marker)
    return store


def use(cell: str, protocol: str = "official", variant: str = "") -> dict[str, str]:
    names = {"experiment": "table8", "metric": "top1", "scale": "mini"}
    return {**names, "cell": cell, "protocol": protocol, "variant": variant}


def make_job(store: Path, job_id: str, stage: str = "linear", seed: int = 0, **fields: Any) -> JobFolder:
    folder = JobFolder(store / stage / job_id).create()
    config = {"data": {"name": "imagenette", "train_images": None}, "epochs": 3, "milestones": [1, 2]}
    job = {"id": job_id, "stage": stage, "name": f"{stage} {job_id}", "config": config, "upstream": [], "seed": seed}
    job |= {"scale": "mini", "protocol": "official", "experiments": ["table8"], "uses": [], "commit": "c0ffee"}
    write_json(folder.path / "job.json", job | {"command": "python orchestrate/run.py table8"} | fields)
    return folder


def log_steps(folder: JobFolder, *steps: int) -> None:
    for step in steps:
        folder.log(step, step / 10, loss=1 / (1 + step), **{"top1/lr=0.1": 50.0 + step})


def client(store: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(mirror.tracking_uri(store))


def runs(store: Path, experiment: str = "jigclu-mini") -> list[Any]:
    found = client(store).get_experiment_by_name(experiment)
    return list(client(store).search_runs([found.experiment_id])) if found else []


def run_of(store: Path, folder: JobFolder) -> Any:
    (run,) = [run for run in runs(store) if run.data.tags["jigclu.job"] == folder.id]
    return run


def points(store: Path, folder: JobFolder, name: str = "loss") -> list[tuple[int, float, int]]:
    history = client(store).get_metric_history(run_of(store, folder).info.run_id, name)
    return sorted((point.step, point.value, point.timestamp) for point in history)


def steps(store: Path, folder: JobFolder, name: str = "loss") -> list[int]:
    return [step for step, _, _ in points(store, folder, name)]


def cells(store: Path, **tags: str) -> dict[str, Any]:
    """Cell key -> child run; fails where a key appears twice."""
    found = [run for run in runs(store, "jigclu-mini-tables") if "jigclu.cell" in run.data.tags]
    found = [run for run in found if all(run.data.tags[f"jigclu.{key}"] == value for key, value in tags.items())]
    keys = [run.data.tags["jigclu.cell"] for run in found]
    assert len(keys) == len(set(keys)), keys
    return dict(zip(keys, found, strict=True))


def in_new_process(store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SYNC, str(store)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# -- jobs -------------------------------------------------------------------------------------------------------------
def test_a_job_becomes_a_run_with_its_params_curve_result_and_files(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", upstream=["bbbbbbbbbbbb"], uses=[use("m=2")])
    log_steps(folder, 0, 10)
    (folder.path / "figures" / "montage.png").write_bytes(b"png")
    folder.write_result({"top1": 61.0}, seconds=5.0)
    mirror.sync(store)
    run = run_of(store, folder)
    assert run.info.run_name == "linear aaaaaaaaaaaa" and run.info.status == "FINISHED"
    assert (
        run.info.end_time == int(1000 * folder.result["finished"]) and run.info.end_time - run.info.start_time == 5000
    )
    assert run.data.params["data.name"] == "imagenette" and run.data.params["milestones"] == "[1, 2]"
    assert run.data.params["upstream"] == "bbbbbbbbbbbb"
    assert run.data.metrics["result.top1"] == 61.0 and run.data.metrics["top1/lr_0.1"] == 60.0
    lines = list(folder.metrics())
    assert points(store, folder) == [(line["step"], line["loss"], int(line["time"] * 1000)) for line in lines]
    assert run.data.tags["jigclu.experiments"] == "table8" and run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert "python orchestrate/run.py table8" in run.data.tags["mlflow.note.content"]
    files = client(store).list_artifacts(run.info.run_id) + client(store).list_artifacts(run.info.run_id, "figures")
    assert {file.path for file in files} == {"job.json", "result.json", "figures", "figures/montage.png"}
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
    assert first.changed == first.runs == 100 + 5
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


def test_a_growing_file_adds_only_its_new_whole_lines(store: Path) -> None:
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


def test_a_long_curve_arrives_whole(store: Path) -> None:
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


def test_a_curve_cut_back_and_regrown_past_the_cursor_is_whole(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa")
    lines = [{"step": step, "epoch": 0.0, "time": 1700000000.123456 + step, "loss": 0.5} for step in range(10)]
    folder.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mirror.sync(store)
    folder.cut_metrics(1)
    with open(folder.metrics_path, "a") as file:  # shorter lines: the old offset now lies inside the line of step 10
        file.writelines(
            json.dumps({"step": step, "time": 1800000000 + step, "loss": 0.5}) + "\n" for step in range(2, 30)
        )
    mirror.sync(store)
    assert steps(store, folder) == list(range(30))


def test_a_rerun_by_other_code_begins_a_new_run(store: Path) -> None:
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


def test_a_resume_by_other_code_goes_on_in_its_run(store: Path) -> None:
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


@pytest.mark.parametrize("remade", [True, False])
def test_a_deleted_database_is_rebuilt_from_the_folders(store: Path, template: Path, remade: bool) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")])
    log_steps(folder, 0, 10)
    folder.write_result({"top1": 61.0})
    report = mirror.sync(store)
    before = points(store, folder)
    (store / "mlflow.db").unlink()
    if remade:
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
    folder.write_result({"top1": math.nan})
    mirror.sync(store)
    values = {step: value for step, value, _ in points(store, folder)}
    assert values[0] == 1.0 and values[4] == 2.0 and all(math.isnan(values[step]) for step in (1, 2, 3))
    assert math.isnan(cells(store)["m=2"].data.metrics["value"])
    assert mirror.sync(store).changed == 0


# -- tables -----------------------------------------------------------------------------------------------------------
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
    }
    done = found["m=2"]
    assert done.data.metrics == {"value": 61.0, "n": 1.0, "printed": 80.9, "difference": pytest.approx(-19.9)}
    job_run = next(run for run in runs(store) if run.data.tags["jigclu.job"] == "aaaaaaaaaaaa")
    assert done.data.tags["jigclu.jobs"] == "aaaaaaaaaaaa" and done.data.tags["jigclu.job_runs"] == job_run.info.run_id
    assert found["m=4"].data.metrics == {"n": 0.0, "printed": 70.1} and "printed" not in found["random"].data.metrics
    (parent,) = [run for run in runs(store, "jigclu-mini-tables") if "jigclu.cell" not in run.data.tags]
    assert parent.info.run_name == "table8 official" and "1 of 4 cells done" in parent.data.tags["mlflow.note.content"]
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}


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
    assert cell.data.metrics["std"] == pytest.approx(statistics.stdev(values))
    assert json.loads(cell.data.tags["jigclu.values"]) == values and cell.data.tags["jigclu.seeds"] == "[0, 1, 2]"
    assert len(client(store).get_metric_history(cell.info.run_id, "printed")) == 1


def test_a_job_of_two_tables_fills_both_and_is_one_run(store: Path) -> None:
    make_job(store, "aaaaaaaaaaaa", uses=[use("m=2"), use("m=2", "paper"), use("m=2", variant="linear.epochs=3")])
    mirror.sync(store)
    assert len(runs(store)) == 1 and len(runs(store, "jigclu-mini-tables")) == 3 * 5
    JobFolder(store / "linear" / "aaaaaaaaaaaa").write_result({"top1": 61.0})
    mirror.sync(store)
    for tags in ({"protocol": "paper"}, {"protocol": "official", "variant": ""}, {"variant": "linear.epochs=3"}):
        assert cells(store, **tags)["m=2"].data.metrics["value"] == 61.0


def test_of_two_recipes_for_one_seed_the_later_planned_fills_the_cell(store: Path) -> None:
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
        assert process.returncode == 0 and "runs=6" in out and not err, err
    assert steps(tmp_path, folder) == [0, 10] and len(cells(tmp_path)) == 4


def test_prepare_with_nothing_to_do_is_nearly_free(store: Path) -> None:
    mirror.prepare(store)
    began = time.monotonic()
    mirror.prepare(store)
    assert time.monotonic() - began < 0.05


def test_a_busy_lock_is_not_waited_for(store: Path) -> None:
    make_job(store, "aaaaaaaaaaaa")
    with mirror.locked(store / ".mirror" / "lock"):
        assert mirror.sync(store, wait_for_lock=False).runs == 0
    assert mirror.sync(store, wait_for_lock=False).runs == 1


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db", "nonsense://x"])
def test_a_tracking_store_out_of_reach_is_one_line_and_soon(
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
    side.start()  # the server is not up yet: the thread goes on trying
    deadline = time.monotonic() + 60
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
    assert steps(store, folder) == [0, 10, 20] and len(cells(store)) == 4
