"""Two stores on one MLflow keep apart; what a server answers; a folder that cannot be read; when a run started."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers.mlflow import client, log_steps, make_job, run_of, runs, steps, use

from jigclu.config import ConfigError
from orchestrate import mirror
from orchestrate.cli import dashboards
from orchestrate.mirror import address
from reports import frames

JOB_ID = "aaaaaaaaaaaa"


@pytest.fixture
def shared(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database outside any store."""
    shutil.copy(template, tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    return tmp_path


def finished(store: Path, top1: float, commit: str) -> None:
    folder = make_job(store, JOB_ID, uses=[use("m=2")], commit=commit)
    log_steps(folder, 0, 10)
    folder.write_result({"top1": top1})


def test_two_stores_with_the_same_job_share_no_run(shared: Path) -> None:
    stores = [shared / "a", shared / "b"]
    for store, top1, commit in zip(stores, (61.0, 75.0), ("first", "second"), strict=True):
        finished(store, top1, commit)
        mirror.sync(store)
    assert mirror.sync(stores[0]).changed == 0
    found = {run.data.tags["mlflow.source.git.commit"]: run for run in runs(stores[0])}
    assert found["first"].data.metrics["linear/result.top1"] == 61.0
    assert found["second"].data.metrics["linear/result.top1"] == 75.0
    values = []
    for store in stores:
        loaded = frames.load(client(store), ["mini"], mirror.store_id(store))
        assert len(loaded.jobs) == 1
        values += list(loaded.cells[loaded.cells["cell"] == "m=2"]["value"])
    assert values == [61.0, 75.0]


def test_a_store_made_again_leaves_the_old_runs_alone(shared: Path) -> None:
    finished(shared / "a", 61.0, "first")
    mirror.sync(shared / "a")
    shutil.rmtree(shared / "a")
    finished(shared / "a", 75.0, "second")
    mirror.sync(shared / "a")
    assert sorted(run.data.metrics["linear/result.top1"] for run in runs(shared / "a")) == [61.0, 75.0]


def test_a_moved_store_keeps_its_id_and_a_copy_gets_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = mirror.store_id(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert mirror.store_id(tmp_path / "link") == first
    (tmp_path / "a").rename(tmp_path / "moved")
    assert mirror.store_id(tmp_path / "moved") == first
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    assert mirror.store_id(tmp_path / "copy") != first and mirror.store_id(tmp_path / "moved") == first


@pytest.mark.parametrize("same", [True, False])
def test_a_run_without_a_store_is_adopted_only_by_the_store_with_its_content(shared: Path, same: bool) -> None:
    finished(shared / "a", 61.0, "first")
    mirror.sync(shared / "a")
    old = run_of(shared / "a", make_job(shared / "other", JOB_ID)).info.run_id
    client(shared).delete_tag(old, "jigclu.store")
    shutil.rmtree(shared / "a" / ".mirror")
    if not same:
        (shared / "a" / "linear" / JOB_ID / "result.json").unlink()
        make_job(shared / "a", JOB_ID).write_result({"top1": 75.0})
    mirror.sync(shared / "a")
    assert {run.info.run_id for run in runs(shared / "a")} >= {old} and len(runs(shared / "a")) == 1 + (not same)


def test_a_run_starts_with_the_first_attempt_and_keeps_it(store: Path) -> None:
    folder = make_job(store, JOB_ID)
    folder.set_status("pending")
    mirror.sync(store)
    own = {"step": 0, "host": "node1", "slurm_job_id": None}
    attempts = [{"began": 1_700_000_000.0, **own}, {"began": 1_700_009_000.0, **own}]
    folder.set_status("running", attempts=attempts[:1])
    log_steps(folder, 0, 10)
    mirror.sync(store)
    first = run_of(store, folder)
    assert first.info.start_time == 1_700_000_000_000 and first.info.end_time is None
    folder.set_status("running", attempts=attempts)
    log_steps(folder, 20)
    mirror.sync(store)
    assert run_of(store, folder).info.run_id == first.info.run_id and steps(store, folder) == [0, 10, 20]
    assert run_of(store, folder).info.start_time == 1_700_000_000_000


def test_one_unreadable_folder_does_not_stop_the_others(store: Path) -> None:
    make_job(store, JOB_ID)
    make_job(store, "bbbbbbbbbbbb").metrics_path.parent.joinpath("job.json").write_text("{torn")
    with pytest.raises(mirror.MirrorError, match="every job but linear/bbbbbbbbbbbb"):
        mirror.sync(store)
    assert [run.data.tags["jigclu.job"] for run in runs(store)] == [JOB_ID]


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, object]]]:
    """A web server and what it answers."""
    answer: dict[str, object] = {"code": 200, "body": b"{}"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(str(answer["code"])))
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            self.wfile.write(bytes(answer["body"]))  # type: ignore[call-overload]

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answer
    server.shutdown()


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (502, b"", "answers with HTTP 502"),
        (503, b"", "answers with HTTP 503"),
        (504, b"", "answers with HTTP 504"),
        (404, b"", "answers with HTTP 404"),
        (302, b"", "redirects to http://127.0.0.1:9/elsewhere"),
        (401, b"", "refuses access"),
        (200, b"<html>hello</html>", "is not MLflow"),
    ],
)
def test_only_mlflow_itself_counts_as_a_server(
    answering: tuple[str, dict[str, object]],
    code: int,
    body: bytes,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, answer = answering
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    mirror.prepare(tmp_path)
    answer |= {"code": code, "body": body}
    with pytest.raises(ConfigError, match=message) as caught:
        mirror.prepare(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_dashboards_take_a_free_port_and_refuse_a_taken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(address, "PORT", port)
        assert dashboards.free_port(None) not in (0, port)
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
            dashboards.free_port(port)
    with pytest.raises(ConfigError, match="port 70000 cannot be used"):
        dashboards.free_port(70000)
