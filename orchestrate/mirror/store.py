"""The MLflow tracking store: preparing it, opening a client, and the few calls that mirror and reports need.

mlflow is imported at the first write: the import costs about 2 s, and most passes have nothing to write.
Only MlflowClient is used, never the fluent API, whose active run is global state.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import logging
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jigclu.config import ConfigError
from jigclu.files import locked, write_atomic
from orchestrate.mirror import sqlite
from orchestrate.mirror.address import (
    check_uri,
    cursor_folder,
    has_tables,
    is_own,
    is_server,
    one_line,
    sqlite_file,
    tracking_uri,
)
from orchestrate.mirror.identity import store_id
from orchestrate.mirror.views import apply_view, views

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

# (name, value, unix ms, step): what identifies a point in MLflow, so logging the same point again adds nothing.
Point = tuple[str, float, int, int]

ANSWER_SECONDS = 5
PAGE = 1000  # runs
ARTIFACTS = "mlartifacts"  # in the store: the files of its runs, if it tracks in a file
# MLflow's limits (mlflow.utils.validation).
METRICS_A_BATCH, FIELDS_A_BATCH, PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 1000, 100, 6000, 8000, 250
# Retries and timeouts are short, so that an unreachable server costs seconds instead of minutes.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a pooled connection would keep writing to a deleted database
    "GIT_PYTHON_REFRESH": "quiet",
}


class RunGone(Exception):
    """A cursor names a run that MLflow no longer has: the store was emptied, or the run was deleted."""


def prepare(store: Path) -> None:
    """Make the tracking store usable: create or migrate a sqlite file, or check that a server answers.

    Call it before any job starts: if eight processes open one fresh sqlite store, all of them fail (anchors.md §5).
    Costs a few stat calls if this version of mlflow has prepared the file before.
    Raises ConfigError, one line, if tracking cannot be reached.
    """
    uri = tracking_uri(store)
    check_uri(uri)
    if is_server(uri):
        return _ask_server(uri)
    database, marker = sqlite_file(uri), cursor_folder(store) / "prepared"
    if database and not sqlite.may_be_database(database):
        raise ConfigError(_not_usable(uri, database, RuntimeError("database: file is not a database")))
    try:
        version = importlib.metadata.version("mlflow")
        with locked(database.with_name(f"{database.name}.lock") if database else marker.with_suffix(".lock")):
            known = marker.read_text(encoding="utf-8") if marker.exists() else ""
            if known == _prepared(version, database) and (not database or has_tables(database)):
                return
            if database:
                _migrate(database)
            else:
                open_client(uri).search_experiments(max_results=1)
            marker.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(marker, _prepared(version, database).encode())
    except Exception as error:
        raise ConfigError(_not_usable(uri, database, error)) from error


def _prepared(version: str, database: Path | None) -> str:
    """What the marker holds: another file may have been put in the database's place since."""
    return f"{version} {sqlite.revision(database)}" if database and has_tables(database) else version


def _not_usable(uri: str, database: Path | None, error: Exception) -> str:
    text = one_line(error)
    if database and "Can't locate revision" in text:
        text = "it was written by a newer MLflow than the installed one; use that environment, or move the file away"
    elif database and "database" in text and ("malformed" in text or "not a database" in text):
        text = sqlite.explain(database, text.rpartition(") ")[2])
    elif isinstance(error, ModuleNotFoundError):
        text = f"its driver {error.name} is not installed"
    return f"MLflow tracking at {one_line(Exception(uri))} is not usable: {text}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # MLflow's client would repeat a POST as a GET


def _ask_server(uri: str) -> None:
    """Ask for an experiment, as MLflow's client does. Raises ConfigError unless MLflow itself answers."""
    address, where = one_line(Exception(uri)), urllib.parse.urlsplit(uri)
    hint = "start it, or unset MLFLOW_TRACKING_URI to track in the store's own sqlite file"
    host = where.netloc.rpartition("@")[2]
    url = f"{where.scheme}://{host}{where.path.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        with urllib.request.build_opener(_NoRedirect).open(url, timeout=ANSWER_SECONDS) as answer:
            body = answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return _ask_with_password(uri, address, error.code)
        if 300 <= error.code < 400:
            target = one_line(Exception(str(error.headers.get("Location", "another address"))))
            problem = f"redirects to {target}: set MLFLOW_TRACKING_URI to the address that answers"
        else:
            problem = f"answers with HTTP {error.code} ({error.reason}): {hint}"
        raise ConfigError(f"MLflow server at {address} {problem}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"MLflow server at {address} does not answer ({one_line(error)}): {hint}") from None
    if not body.lstrip().startswith(b"{"):
        raise ConfigError(f"what answers at {address} is not MLflow; correct MLFLOW_TRACKING_URI, or unset it")


def _ask_with_password(uri: str, address: str, code: int) -> None:
    """Ask through MLflow's client, which knows the user's password or token."""
    try:
        open_client(uri).search_experiments(max_results=1)
    except Exception as error:
        raise ConfigError(
            f"MLflow server at {address} refuses access (HTTP {code}: {one_line(error)}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        ) from None


def _migrate(database: Path) -> None:
    """Create or upgrade in a separate process (mlflow never closes its engines); a new file appears complete or not at all."""
    fresh = not has_tables(database)
    target = database.with_name(f".{database.name}.{os.getpid()}.tmp") if fresh else database
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{target}"]
    try:
        done = subprocess.run(
            command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["mlflow db upgrade failed"])[-1])
        if fresh:
            os.replace(target, database)
    finally:
        if fresh:
            target.unlink(missing_ok=True)


def open_client(uri: str) -> MlflowClient:
    """MLflow's client with this suite's settings. No other code makes one."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # errors are raised, too: their tracebacks would be shown twice
    return MlflowClient(uri)


def connect(uri: str) -> MlflowClient | None:
    """A client; None if `uri` names a sqlite file that does not exist, since opening it would spend 6 s on creating it."""
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        return None
    if database is not None and not database.is_file():
        raise sqlite.UnusableDatabase(f"{database} is no regular file: move it away")
    try:
        return open_client(uri)
    except ModuleNotFoundError as error:
        problem = f"needs the Python package {error.name}: install it, or unset MLFLOW_TRACKING_URI"
    except ValueError as error:  # an address that is none, or a setting such as MLFLOW_SQLALCHEMYSTORE_POOL_SIZE
        problem = f"cannot be opened ({one_line(error)}): correct the variables MLFLOW_..., or unset them"
    raise sqlite.UnusableDatabase(f"{uri} {problem}")


@contextlib.contextmanager
def unusable() -> Iterator[None]:
    """Turns what MLflow's client raises into sqlite.UnusableDatabase, without importing MLflow where it is not used."""
    try:
        yield
    except Exception as error:
        kinds = (("mlflow.exceptions", "MlflowException"), ("sqlalchemy.exc", "SQLAlchemyError"))
        known = [getattr(sys.modules[module], name) for module, name in kinds if module in sys.modules]
        if not isinstance(error, tuple(known)):
            raise
        raise sqlite.UnusableDatabase(one_line(error)) from error


def search_runs(client: MlflowClient, experiment_id: str, query: str = "", **more: Any) -> Iterator[Run]:
    """Every run of the experiment that matches, page by page; deleted ones are left out. `more`: e.g. `order_by`."""
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=PAGE, page_token=token, **more)
        yield from page
        token = page.token
        if not token:
            return


def active_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """The experiment of that name; None if there is none or it was deleted."""
    found = client.get_experiment_by_name(name)
    return found if found is not None and found.lifecycle_stage == "active" else None


def read_runs(client: MlflowClient, experiment: str) -> Iterable[Run | sqlite.Run]:
    """Active runs of the experiment of that name, newest first: from the sqlite file if its schema is known, else from
    the client."""
    database = sqlite_file(client.tracking_uri)
    if database is not None and (runs := sqlite.runs(database, experiment)) is not None:
        return runs
    found = active_experiment(client, experiment)
    return [] if found is None else search_runs(client, found.experiment_id)


class Tracking:
    """One tracking store. mlflow is neither imported nor contacted before the first write."""

    def __init__(self, store: Path):
        self.store, self.uri, self.cursors = store, tracking_uri(store), cursor_folder(store)
        self.own, self.store_id = is_own(store), store_id(store)
        self._opened: MlflowClient | None = None
        self._experiments: dict[str, str] = {}

    @property
    def client(self) -> MlflowClient:
        if self._opened is None:
            prepare(self.store)
            self._opened = open_client(self.uri)
        return self._opened

    def live(self) -> frozenset[str] | None:
        """Ids of the runs of a sqlite store, read without mlflow: a pass with nothing to write notices a deleted
        database in a millisecond. None for a server or an unknown schema: there a write notices a missing run."""
        database = sqlite_file(self.uri)
        if database is None:
            return None
        return sqlite.live_runs(database) if has_tables(database) else frozenset()

    def forget(self) -> None:
        """Drop every cursor: the next pass looks for each run by its tags and creates those that are missing."""
        for path in self.cursors.glob("*.json"):
            path.unlink()

    def experiment(self, name: str) -> str:
        """The experiment's id; it is created if absent, restored if deleted."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                # A server decides itself where artifacts go.
                folder = None if is_server(self.uri) else (self.store.absolute() / ARTIFACTS / name).as_uri()
                self._experiments[name] = self.client.create_experiment(
                    name, artifact_location=folder, tags=views(name)
                )
            else:
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
                apply_view(self.client, found)
        return self._experiments[name]

    def find(self, experiment: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """Runs of the experiment that carry these tags, oldest first."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return search_runs(self.client, self.experiment(experiment), query, order_by=["start_time"])

    def run(self, run_id: str) -> Run:
        """Raises RunGone if it does not exist or was deleted."""
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
        """Log everything in as few calls as MLflow's limits allow."""
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
