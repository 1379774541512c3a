"""Several stores on one MLflow server do not mix, whatever ids their jobs have; what answers there must be MLflow."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.mlflow import cells, client, log_steps, make_job, runs, steps, use

from jigclu.config import ConfigError
from jigclu.job_folder import JobFolder
from orchestrate import mirror
from orchestrate.mirror.identity import id_on_shared_server, store_id
from orchestrate.mirror.store import connect
from orchestrate.planning import experiments
from reports import assemble, frames

JOB = "aaaaaaaaaaaa"


@pytest.fixture
def shared(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking store that several job stores use."""
    shutil.copy(template, tmp_path / "lab.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/lab.db")
    return f"sqlite:///{tmp_path}/lab.db"


def finished(store: Path, top1: float, *logged: int, commit: str = "c0ffee", **fields: Any) -> JobFolder:
    store.mkdir(exist_ok=True)
    folder = make_job(store, JOB, uses=[use("m=2")], commit=commit, source_digest=commit, **fields)
    log_steps(folder, *logged)
    folder.write_result({"top1": top1}, seconds=5.0)
    return folder


def runs_of(store: Path) -> list[Any]:
    return [run for run in runs(store) if run.data.tags.get("jigclu.store") == store_id(store)]


def reported(store: Path) -> float | None:
    """The number that a report of the store shows for Table 8, m = 2."""
    loaded = frames.load(connect(mirror.tracking_uri(store)), ["mini"], id_on_shared_server(store))
    (table,) = assemble.assemble(loaded, experiments.find(["table8"]), ["mini"])
    return next(result.value for result in table.results if result.cell.key == "m=2")


def test_two_stores_with_the_same_job_do_not_mix(tmp_path: Path, shared: str) -> None:
    """The same job id, made by other code and other data: each store has its run, its cells and its number."""
    a, b = tmp_path / "a", tmp_path / "b"
    finished(a, 61.0, 0, 10, commit="aaa")
    finished(b, 33.0, 0, 10, 20, commit="bbb")
    for store in (a, b, a, b):
        mirror.sync(store)
    for store, top1, commit, curve in ((a, 61.0, "aaa", [0, 10]), (b, 33.0, "bbb", [0, 10, 20])):
        (run,) = runs_of(store)
        history = client(store).get_metric_history(run.info.run_id, next(n for n in run.data.metrics if "loss" in n))
        assert sorted(point.step for point in history) == curve
        assert run.data.metrics["result.top1"] == top1 and run.data.tags["jigclu.source_digest"] == commit
        assert reported(store) == top1
        assert cells(store, store=store_id(store))["m=2"].data.metrics["value"] == top1
    assert len(runs(a)) == 2
    assert mirror.sync(a).changed == mirror.sync(b).changed == 0


def test_a_moved_store_keeps_its_runs_and_a_copied_one_gets_its_own(tmp_path: Path, shared: str) -> None:
    finished(tmp_path / "a", 61.0, 0, 10)
    mirror.sync(tmp_path / "a")
    first = store_id(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert mirror.sync(tmp_path / "moved").changed == 0 and store_id(tmp_path / "moved") == first
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert store_id(tmp_path / "link") == first
    shutil.copytree(tmp_path / "moved", tmp_path / "copy", symlinks=True)
    finished(tmp_path / "copy", 33.0, 20)
    for store in (tmp_path / "copy", tmp_path / "moved", tmp_path / "copy"):
        mirror.sync(store)
    assert store_id(tmp_path / "moved") == first != store_id(tmp_path / "copy")
    assert reported(tmp_path / "moved") == 61.0 and reported(tmp_path / "copy") == 33.0


def test_a_store_that_was_deleted_and_made_again_gets_new_runs(tmp_path: Path, shared: str) -> None:
    store = tmp_path / "a"
    finished(store, 61.0, 0, 10, commit="aaa")
    mirror.sync(store)
    old = store_id(store)
    shutil.rmtree(store)
    finished(store, 33.0, 0, commit="bbb")
    mirror.sync(store)
    assert store_id(store) != old and reported(store) == 33.0
    assert {run.data.tags["jigclu.store"]: run.data.metrics["result.top1"] for run in runs(store)} == {
        old: 61.0,
        store_id(store): 33.0,
    }


def test_without_cursors_a_rerun_does_not_continue_the_old_curve(tmp_path: Path, shared: str) -> None:
    store = tmp_path / "a"
    folder = finished(store, 61.0, 0, 10, 20, commit="aaa")
    mirror.sync(store)
    shutil.rmtree(store / ".mirror")
    folder.metrics_path.unlink()
    finished(store, 33.0, 0, 10, commit="bbb")
    mirror.sync(store)
    (run,) = runs(store)
    assert run.data.metrics["result.top1"] == 33.0 and run.data.tags["jigclu.source_digest"] == "bbb"
    assert steps(store, folder) == [0, 10]


def test_a_run_of_an_earlier_version_is_taken_over_by_the_store_whose_curve_it_has(tmp_path: Path, shared: str) -> None:
    """Such runs have no store's id. Another store with the same job leaves it alone."""
    a, b = tmp_path / "a", tmp_path / "b"
    finished(a, 61.0, 0, 10)
    mirror.sync(a)
    for run in (*runs(a), *runs(a, "jigclu-mini-tables")):
        client(a).delete_tag(run.info.run_id, "jigclu.store")
    for path in (a / ".mirror").glob("*/*.json"):
        path.unlink()
    finished(b, 33.0, 0, 10)
    mirror.sync(b)
    mirror.sync(a)
    assert len(runs(a)) == 2 and len(runs_of(a)) == len(runs_of(b)) == 1
    assert len(cells(a, store=store_id(a))) == len(cells(b, store=store_id(b))) == 4
    assert len(runs(a, "jigclu-mini-tables")) == 10
    assert reported(a) == 61.0 and reported(b) == 33.0


# -- what answers at the tracking URI ---------------------------------------------------------------------------------
@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], str]]:
    """Starts a web server that gives every request this status and body; returns its address."""
    servers = []

    def start(status: int, body: bytes) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (502, b"<html>Bad Gateway</html>", "no usable MLflow server"),
        (503, b"", "no usable MLflow server"),
        (504, b"", "no usable MLflow server"),
        (404, b"not found", "no usable MLflow server"),
        (200, b"<html>the wiki</html>", "no usable MLflow server"),
        (401, b"who are you?", "MLFLOW_TRACKING_USERNAME"),
        (403, b"", "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_what_is_not_an_mlflow_server_is_refused_in_one_line(
    answering: Callable[[int, bytes], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: bytes,
    message: str,
) -> None:
    """A proxy's error page is not a live server: every job would fail to mirror."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering(status, body))
    with pytest.raises(ConfigError, match=message) as caught:
        mirror.prepare(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_server_that_says_it_is_healthy_is_believed(
    answering: Callable[[int, bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering(200, b"OK"))
    mirror.prepare(tmp_path)
