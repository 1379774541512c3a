"""Reading MLflow's database without its client: equal to the client, and left to the client if the schema is unknown."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from helpers.mlflow import cells, client, log_steps, make_job, run_of, steps, use

from jigclu.job_folder import JobFolder
from orchestrate import mirror
from orchestrate.mirror import sqlite
from orchestrate.mirror.store import Tracking, connect, read_runs

CHANGES = {
    "another revision": "update alembic_version set version_num = 'ffffffffffff'",
    "no revision": "drop table alembic_version",
    "another column": "alter table latest_metrics rename column is_nan to not_a_number",
    "another table": "alter table tags rename to run_tags",
}


@pytest.fixture
def filled(store: Path) -> Path:
    """Four jobs of Table 8; the metric of one is NaN, and one run is deleted."""
    for index, (cell, top1) in enumerate({"m=2": 61.0, "m=3": 60.0, "m=4": math.nan, "random": 40.0}.items()):
        folder = make_job(store, f"{index:012x}", uses=[use(cell)])
        log_steps(folder, 0, 10)
        folder.write_result({"loss": 1.0} if math.isnan(top1) else {"top1": top1})  # its cell has NaN in MLflow
    mirror.sync(store)
    client(store).delete_run(run_of(store, folder).info.run_id)
    return store


def change_schema(store: Path, statement: str) -> None:
    with closing(sqlite3.connect(store / "mlflow.db")) as link, link:
        link.execute(statement)


def test_a_database_says_what_mlflows_client_says(filled: Path) -> None:
    for name, count in (("jigclu-mini", 3), ("jigclu-mini-tables", 8)):
        experiment = client(filled).get_experiment_by_name(name)
        expected, read = (
            list(client(filled).search_runs([experiment.experiment_id])),
            sqlite.runs(filled / "mlflow.db", name),
        )
        assert read is not None and len(read) == len(expected) == count
        for run, other in zip(read, expected, strict=True):
            assert run.data.tags == other.data.tags and run.data.params == other.data.params
            assert repr(sorted(run.data.metrics.items())) == repr(sorted(other.data.metrics.items()))  # NaN equals NaN
            assert all(value == getattr(other.info, key) for key, value in vars(run.info).items())
    assert sqlite.runs(filled / "mlflow.db", "no-such") == []
    live = sqlite.live_runs(filled / "mlflow.db")
    assert live is not None and len(live) == 11


def test_the_installed_mlflows_schema_is_among_the_tested_ones(template: Path) -> None:
    """Fails with a new MLflow: add its revision to TESTED_REVISIONS if the test above passes with it."""
    assert sqlite.live_runs(template) == frozenset()


@pytest.mark.parametrize("change", CHANGES)
def test_an_unknown_schema_is_left_to_mlflows_client(filled: Path, change: str) -> None:
    change_schema(filled, CHANGES[change])
    assert sqlite.runs(filled / "mlflow.db", "jigclu-mini") is None
    assert sqlite.live_runs(filled / "mlflow.db") is None and Tracking(filled).live() is None


def test_reports_read_an_unknown_schema_through_the_client(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = connect(mirror.tracking_uri(filled))
    assert opened is not None
    expected = {run.data.tags["jigclu.job"]: run.info.run_id for run in read_runs(opened, "jigclu-mini")}
    monkeypatch.setattr(sqlite, "TESTED_REVISIONS", ())
    read = {run.data.tags["jigclu.job"]: run.info.run_id for run in read_runs(opened, "jigclu-mini")}
    assert read == expected and len(read) == 3
    assert list(read_runs(opened, "no-such")) == []


def test_the_mirror_works_with_an_unknown_schema(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "TESTED_REVISIONS", ())
    folder = JobFolder(filled / "linear" / f"{0:012x}")
    log_steps(folder, 20)
    mirror.sync(filled)
    assert steps(filled, folder) == [0, 10, 20]
    client(filled).delete_run(run_of(filled, folder).info.run_id)
    folder.update_job(experiments=["table8", "table9"])
    mirror.sync(filled)
    assert steps(filled, folder) == [0, 10, 20] and len(cells(filled)) == 7


def test_a_database_without_tables_has_no_runs(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "empty.db")) as link:
        link.execute("vacuum")
    assert sqlite.live_runs(tmp_path / "empty.db") == frozenset()
