"""What users and machines do to MLflow: damaged, locked, moved, deleted and unusable tracking stores. One line each."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from helpers.mlflow import cells, client, in_new_process, log_steps, make_job, run_of, runs, steps, use
from helpers.orchestrator import prepared_store

from jigclu.config import ConfigError
from orchestrate import mirror
from orchestrate.mirror import background, identity, sqlite
from orchestrate.mirror.sqlite import UnusableDatabase
from orchestrate.mirror.store import connect, unusable

JOB_ID, OTHER = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


def message(store: Path) -> str:
    with pytest.raises(mirror.MirrorError) as caught:
        mirror.sync(store)
    assert "\n" not in str(caught.value) and "job folders are unaffected" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", ["text", "half"])
def test_a_damaged_database_is_named_and_can_be_moved_away(store: Path, template: Path, content: str) -> None:
    make_job(store, JOB_ID, uses=[use("m=2")]).write_result({"top1": 61.0})
    database = store / "mlflow.db"
    database.write_bytes(b"no database" * 1000 if content == "text" else template.read_bytes()[:20000])
    said = message(store)
    assert f"{database} is damaged or no database" in said and "move it away" in said
    assert content != "text" or not database.with_name(f"{database.name}.lock").exists()
    shutil.copy(template, database)
    mirror.sync(store)
    assert cells(store)["m=2"].data.metrics["value"] == 61.0


def test_a_locked_database_is_named_and_nothing_is_lost_or_doubled(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log_steps(make_job(store, JOB_ID), 0, 10)
    mirror.sync(store)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: connect(*args, **more | {"timeout": 0.1}))
    log_steps(make_job(store, OTHER), 0, 10)
    capfd.readouterr()
    for how in ("exclusive", "immediate"):  # refused already when it is read; only when it is written
        with closing(connect(store / "mlflow.db", isolation_level=None)) as held:
            held.execute(f"begin {how}")
            assert f"{store / 'mlflow.db'} is locked by another program" in message(store)
    assert "Traceback" not in capfd.readouterr().err
    mirror.sync(store)
    assert len(runs(store)) == 2 and steps(store, make_job(store, OTHER)) == [0, 10]


def test_a_database_of_a_newer_mlflow_is_named_so(store: Path) -> None:
    make_job(store, JOB_ID)
    with closing(sqlite3.connect(store / "mlflow.db")) as link, link:
        link.execute("update alembic_version set version_num = 'ffffffffffff'")
    with pytest.raises(ConfigError, match="written by a newer MLflow"):
        mirror.prepare(store)


def test_a_database_put_in_the_place_of_a_prepared_one_is_prepared_too(store: Path) -> None:
    mirror.prepare(store)
    (marker,) = (store / ".mirror").glob("*/prepared")
    assert sqlite.revision(store / "mlflow.db") in marker.read_text()
    marker.write_text(marker.read_text().replace(sqlite.revision(store / "mlflow.db"), "an older one"))
    mirror.prepare(store)
    assert sqlite.revision(store / "mlflow.db") in marker.read_text()


def test_deleted_and_restored_or_renamed_experiments_double_nothing(store: Path) -> None:
    folder = make_job(store, JOB_ID, uses=[use("m=2")])
    log_steps(folder, 0, 10)
    mirror.sync(store)
    opened = client(store)
    opened.delete_run(run_of(store, folder).info.run_id)
    mirror.sync(store)
    for name, count in (("jigclu-mini", 1), ("jigclu-mini-tables", 8)):
        opened.delete_experiment(opened.get_experiment_by_name(name).experiment_id)
        mirror.sync(store)  # restoring the experiment restores its deleted run, too
        assert len(runs(store, name)) == count
    opened.rename_experiment(opened.get_experiment_by_name("jigclu-mini").experiment_id, "another name")
    mirror.sync(store)
    assert steps(store, folder) == [0, 10] and mirror.sync(store).changed == 0


def test_a_moved_or_copied_store_keeps_its_files_beside_its_database(store: Path, tmp_path: Path) -> None:
    folder = make_job(store, JOB_ID)
    (folder.path / "figures" / "a.png").write_bytes(b"first")
    mirror.sync(store)
    moved, copy = tmp_path / "moved", tmp_path / "copy of it"
    store.rename(moved)
    shutil.copytree(moved, copy)
    for here in (moved, copy):
        (here / "linear" / JOB_ID / "figures" / "b.png").write_bytes(here.name.encode())
        assert in_new_process(here).wait() == 0  # mlflow remembers a run's folder as long as the process runs
        assert run_of(here, folder).info.artifact_uri.startswith((here / "mlartifacts").as_uri())
        names = sorted(path.name for path in (here / "mlartifacts").rglob("*.png"))
        assert names == ["a.png", "b.png"] and len(runs(here)) == 1
    assert not store.exists()


def test_a_store_reached_through_a_link_is_not_moved(store: Path, tmp_path: Path) -> None:
    folder = make_job(store, JOB_ID)
    mirror.sync(store)
    (tmp_path / "link").symlink_to(store)
    mirror.sync(tmp_path / "link")
    assert run_of(store, folder).info.artifact_uri.startswith((store / "mlartifacts").as_uri())


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("sqlite:///x.db", "depends on the current folder; from here it is sqlite:////"),
        ("sqlite://", "names no file"),
        ("file:/tmp/x", "is no address"),
        ("mlruns", "is no address"),
        ("127.0.0.1:5000", "is no address"),
        ("http:/127.0.0.1", "is no address"),
        ("postgresql://me:secret@localhost/db", "driver psycopg"),
    ],
)
def test_an_unusable_address_is_refused_with_the_valid_forms(
    store: Path, uri: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=problem) as caught:
        mirror.prepare(store)
    said = str(caught.value)
    assert "\n" not in said and "secret" not in said and ("sqlite:////FOLDER" in said or "driver" in said)
    make_job(store, JOB_ID)
    assert problem in message(store)


def test_a_full_disk_stops_neither_the_mirrors_thread_nor_the_run(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_job(store, JOB_ID)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(identity, "write_json", full)
    monkeypatch.setattr(background, "MIRROR_SECONDS", 0.05)
    with background.mirroring(store):
        time.sleep(0.3)
    shown = "".join(capfd.readouterr())
    assert shown.count("No space left on device") == 1 and "Traceback" not in shown


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_address_means_the_stores_own_file(store: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    assert mirror.is_own(store)


def test_variables_of_mlflow_in_the_shell_change_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME", "ARTIFACT_URI"):
        monkeypatch.setenv(f"MLFLOW_{name}", "77")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    folder = make_job(store, JOB_ID)
    mirror.sync(store)
    assert run_of(store, folder).info.experiment_id == client(store).get_experiment_by_name("jigclu-mini").experiment_id


@pytest.mark.parametrize(
    ("uri", "variable", "words"),
    [
        ("http://[::1", "", "cannot be opened"),
        ("sqlite:///{store}/mlflow.db", "abc", "cannot be opened"),
        ("postgresql://h/d", "", "needs the Python package"),
    ],
)
def test_what_mlflow_cannot_open_is_one_line(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, uri: str, variable: str, words: str
) -> None:
    if variable:
        monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", variable)
    store = prepared_store(tmp_path / "runs", template)
    with pytest.raises(UnusableDatabase, match=words), unusable():
        connect(uri.format(store=store)).search_experiments()  # type: ignore[union-attr]


def test_a_database_damaged_in_its_middle_is_one_line(tmp_path: Path, template: Path) -> None:
    store = prepared_store(tmp_path / "runs", template)
    with open(store / "mlflow.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (store / "mlflow.db").stat().st_size)
    with pytest.raises(UnusableDatabase), unusable():
        connect(f"sqlite:///{store}/mlflow.db").search_experiments()  # type: ignore[union-attr]


def test_a_pipe_is_no_database(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mlflow.db")
    with pytest.raises(UnusableDatabase, match="no regular file"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
