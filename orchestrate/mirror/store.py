"""The MLflow store that mirrors the job folders: where it is, making it once, and the few calls that the mirror needs.

mlflow is imported at the first write and not before: the import costs about 2 s, and most passes have nothing to write.
Only MlflowClient is used, never the fluent API, whose active run is global state.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from jigclu.config import ConfigError
from jigclu.files import locked, write_atomic
from orchestrate.mirror.address import cursor_folder, has_tables, is_server, one_line, sqlite_file, tracking_uri
from orchestrate.mirror.views import apply_view, views

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# (name, value, unix ms, step): MLflow's key of a point, so that logging the same point again adds nothing.
Point = tuple[str, float, int, int]

ANSWER_SECONDS = 5
# MLflow's limits (mlflow.utils.validation), and the settings under which a dead server costs seconds, not minutes.
METRICS_A_BATCH, FIELDS_A_BATCH, PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 1000, 100, 6000, 8000, 250
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a pooled connection would go on writing to a deleted database
    "GIT_PYTHON_REFRESH": "quiet",
}


class RunGone(Exception):
    """A cursor names a run that MLflow no longer has: the store was emptied, or the run deleted."""


def prepare(store: Path) -> None:
    """Make sure that the tracking store is there: creates or migrates a sqlite file, asks a server whether it answers.

    To be called before any job starts: eight processes that open one fresh sqlite store all fail (anchors.md §5).
    Costs a few stat calls when this version of mlflow has prepared the file before.
    Raises ConfigError in one line where tracking cannot be reached.
    """
    uri = tracking_uri(store)
    if is_server(uri):
        return _ask_server(uri)
    database, marker = sqlite_file(uri), cursor_folder(store) / "prepared"
    try:
        version = importlib.metadata.version("mlflow")
        with locked(database.with_name(f"{database.name}.lock") if database else marker.with_suffix(".lock")):
            if marker.exists() and marker.read_text() == version and (not database or has_tables(database)):
                return
            if database:
                _migrate(database)
            else:
                _client(uri).search_experiments(max_results=1)
            marker.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(marker, version.encode())
    except Exception as error:
        raise ConfigError(f"MLflow tracking at {one_line(Exception(uri))} is not usable: {one_line(error)}") from error


def _ask_server(uri: str) -> None:
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # a proxy without /health, or one that wants a password: something answers
    except (OSError, ValueError) as error:
        hint = "start it, or unset MLFLOW_TRACKING_URI to track in the store's own sqlite file"
        where = one_line(Exception(uri))
        raise ConfigError(f"MLflow server at {where} does not answer ({one_line(error)}): {hint}") from None


def _migrate(database: Path) -> None:
    """Create or upgrade in a process of its own (mlflow keeps engines for good); a new file appears whole or never."""
    fresh = not has_tables(database)
    target = database.with_name(f".{database.name}.{os.getpid()}.tmp") if fresh else database
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{target}"]
    try:
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["mlflow db upgrade failed"])[-1])
        if fresh:
            os.replace(target, database)
    finally:
        if fresh:
            target.unlink(missing_ok=True)


def _client(uri: str) -> MlflowClient:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(uri)


class Tracking:
    """One tracking store. Nothing is imported, made or asked before the first write."""

    def __init__(self, store: Path):
        self.store, self.uri, self.cursors = store, tracking_uri(store), cursor_folder(store)
        self._opened: MlflowClient | None = None
        self._experiments: dict[str, str] = {}

    @property
    def client(self) -> MlflowClient:
        if self._opened is None:
            prepare(self.store)
            self._opened = _client(self.uri)
        return self._opened

    def live(self) -> frozenset[str] | None:
        """Ids of the runs in a sqlite store, read without mlflow so that a pass with nothing to write notices a deleted
        database in a millisecond; None for a server, where a missing run is noticed when it is written to."""
        database = sqlite_file(self.uri)
        if database is None:
            return None
        if not has_tables(database):
            return frozenset()
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=20)) as link:
            if not link.execute("select 1 from sqlite_master where name = 'runs'").fetchone():
                return frozenset()
            rows = link.execute("select run_uuid from runs where lifecycle_stage = 'active'")
            return frozenset(row[0] for row in rows)

    def forget(self) -> None:
        """Drop every cursor: each run is then looked for by its tags, and made anew where there is none."""
        for path in self.cursors.glob("*.json"):
            path.unlink()

    def experiment(self, name: str) -> str:
        """The id of the experiment; made if absent, restored if deleted."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                # A server says itself where artifacts go.
                place = None if is_server(self.uri) else (self.store.absolute() / "mlartifacts" / name).as_uri()
                self._experiments[name] = self.client.create_experiment(name, artifact_location=place, tags=views(name))
            else:
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
                apply_view(self.client, found)
        return self._experiments[name]

    def find(self, experiment: str, **tags: str) -> Iterator[Run]:
        """Runs of the experiment that carry these `jigclu.` tags, oldest first; deleted ones left out."""
        query = " and ".join(f"tags.`jigclu.{name}` = '{value}'" for name, value in tags.items())
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment(experiment)], query, max_results=1000, order_by=["start_time"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def run(self, run_id: str) -> Run:
        """Raises RunGone where it does not exist or was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise RunGone(run_id) from None
        if run.info.lifecycle_stage == "deleted":
            raise RunGone(run_id)
        return run

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Everything in as few calls as MLflow's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        for start in range(0, len(metrics), METRICS_A_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_BATCH])
        pairs = [Param(key[:KEY_LENGTH], value[:PARAM_LENGTH]) for key, value in (params or {}).items()]
        for start in range(0, len(pairs), FIELDS_A_BATCH):
            self.client.log_batch(run_id, params=pairs[start : start + FIELDS_A_BATCH])
        labels = [RunTag(key, value[:TAG_LENGTH]) for key, value in (tags or {}).items()]
        for start in range(0, len(labels), FIELDS_A_BATCH):
            self.client.log_batch(run_id, tags=labels[start : start + FIELDS_A_BATCH])


def connect(uri: str) -> MlflowClient | None:
    """A client; None where `uri` names a sqlite file that does not exist: opening it would spend 6 s on creating it."""
    database = sqlite_file(uri)
    return None if database is not None and not database.exists() else _client(uri)
