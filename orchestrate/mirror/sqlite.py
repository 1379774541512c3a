"""Runs of a sqlite tracking store, read without MLflow's client: 10,000 runs take 2 s instead of 25 s.

This is the only file that knows MLflow's database schema: the tables and columns of COLUMNS, `lifecycle_stage`, and that
a NaN metric is a row with `is_nan`. The schema is no public interface, so it is checked first: unless the revision is one of
TESTED_REVISIONS and the columns exist, the functions return None and the caller asks MLflow's client. A test compares what
is read here with what the client returns, and another requires the installed MLflow's revision to be listed.
"""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

TESTED_REVISIONS = ("dc11669786a5",)  # alembic_version of MLflow 3.17
COLUMNS = {
    "experiments": {"experiment_id", "name", "lifecycle_stage", "artifact_location"},
    "runs": {
        *("run_uuid", "experiment_id", "name", "status", "start_time", "end_time"),
        *("artifact_uri", "lifecycle_stage"),
    },
    "tags": {"run_uuid", "key", "value"},
    "params": {"run_uuid", "key", "value"},
    "latest_metrics": {"run_uuid", "key", "value", "is_nan"},
}


@dataclass
class Info:
    """The fields of mlflow.entities.RunInfo that reports read."""

    run_id: str
    run_name: str
    status: str
    end_time: int | None
    artifact_uri: str
    experiment_id: str


@dataclass
class Data:
    """As mlflow.entities.RunData; `metrics`: the latest value of each."""

    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """As mlflow.entities.Run."""

    info: Info
    data: Data


class UnusableDatabase(RuntimeError):
    """The file cannot be read as a database; one line that names it."""


def explain(database: Path, problem: str) -> str:
    """SQLite's words for what is wrong, as a sentence that names the file and says what to do."""
    if "locked" in problem:
        return f"{database} is locked by another program; the next sync completes the work"
    if "malformed" in problem or "not a database" in problem:
        return (
            f"{database} is damaged or no database ({problem}): move it away, and `jigclu sync` builds a new one from "
            "the job folders"
        )
    return f"{database}: {problem}"


def may_be_database(path: Path) -> bool:
    """Whether SQLite may open the path: no file yet, an empty one, or one that begins as its files do."""
    try:
        with open(path, "rb") as file:
            return file.read(16) in (b"", b"SQLite format 3\0")
    except OSError:
        return not path.is_dir()  # opening anything else says why


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection that sees one state of the store, even if another process writes to it."""
    try:
        link = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=20)
        try:
            link.execute("begin")
            yield link
        finally:
            link.close()
    except sqlite3.Error as error:
        raise UnusableDatabase(explain(database, str(error))) from error


def _columns(link: sqlite3.Connection, table: str) -> set[str]:
    return {str(row[0]) for row in link.execute("select name from pragma_table_info(?)", [table])}


def _schema_is_known(link: sqlite3.Connection) -> bool:
    if not _columns(link, "alembic_version"):
        return False
    revisions = [row[0] for row in link.execute("select version_num from alembic_version")]
    if len(revisions) != 1 or revisions[0] not in TESTED_REVISIONS:
        return False
    return all(columns <= _columns(link, table) for table, columns in COLUMNS.items())


def revision(database: Path) -> str:
    """The schema's revision; "" if there is none."""
    with _opened(database) as link:
        if not _columns(link, "alembic_version"):
            return ""
        return " ".join(str(row[0]) for row in link.execute("select version_num from alembic_version"))


def experiments(database: Path) -> dict[str, str]:
    """Id of every active experiment by name; empty if the schema is unknown."""
    with _opened(database) as link:
        if not _schema_is_known(link):
            return {}
        query = "select name, cast(experiment_id as text) from experiments where lifecycle_stage = 'active'"
        return dict(link.execute(query).fetchall())


def live_runs(database: Path) -> frozenset[str] | None:
    """Ids of the runs of the suite's experiments, deleted and renamed ones left out; empty for a database without tables,
    None if its schema is unknown."""
    with _opened(database) as link:
        if not link.execute("select 1 from sqlite_master").fetchone():
            return frozenset()
        if not _schema_is_known(link):
            return None
        rows = link.execute(
            "select run_uuid from runs join experiments using (experiment_id) where experiments.name like 'jigclu-%' "
            "and experiments.lifecycle_stage = 'active' and runs.lifecycle_stage = 'active'"
        )
        return frozenset(str(row[0]) for row in rows)


def runs(database: Path, experiment: str) -> list[Run] | None:
    """Active runs of the active experiment of that name, newest first; None if the schema is unknown."""
    joined = "from {} join runs using (run_uuid) join experiments using (experiment_id)"
    which = "where experiments.name = ? and experiments.lifecycle_stage = 'active' and runs.lifecycle_stage = 'active' "
    with _opened(database) as link:
        if not _schema_is_known(link):
            return None
        data: dict[str, Data] = defaultdict(Data)
        for table in ("tags", "params"):
            query = f"select run_uuid, key, value {joined.format(table)} {which}"
            for run_id, key, value in link.execute(query, [experiment]):
                getattr(data[run_id], table)[key] = value
        query = f"select run_uuid, key, value, is_nan {joined.format('latest_metrics')} {which}"
        for run_id, key, value, is_nan in link.execute(query, [experiment]):
            data[run_id].metrics[key] = math.nan if is_nan else value
        query = (
            "select run_uuid, runs.name, status, end_time, artifact_uri, cast(experiment_id as text) from runs "
            f"join experiments using (experiment_id) {which} order by start_time desc, run_uuid"
        )
        return [Run(Info(*row), data[row[0]]) for row in link.execute(query, [experiment])]


def relocate(database: Path, artifacts: Path) -> None:
    """Make the suite's experiments and runs keep their files under `artifacts`, the folder beside the database.

    A database that was moved or copied with its store names the old folder: pictures would be missing, or be written
    into the store that it was copied from.
    """
    with _opened(database) as link:
        if not link.execute("select 1 from sqlite_master").fetchone() or not _schema_is_known(link):
            return
        query = "select experiment_id, name, artifact_location from experiments where name like 'jigclu-%'"
        wrong = [
            (number, old.rstrip("/"), (artifacts / name).as_uri())
            for number, name, old in link.execute(query)
            if old.rstrip("/").endswith(f"/{artifacts.name}/{quote(name)}") and not _is_same(old, artifacts / name)
        ]
    if not wrong:
        return
    writer = sqlite3.connect(database, timeout=20)
    try:
        with writer:
            for number, old, new in wrong:
                writer.execute("update experiments set artifact_location = ? where experiment_id = ?", [new, number])
                writer.execute(
                    "update runs set artifact_uri = ? || substr(artifact_uri, ?) "
                    "where experiment_id = ? and substr(artifact_uri, 1, ?) = ?",
                    [new, len(old) + 1, number, len(old) + 1, f"{old}/"],
                )
    except sqlite3.Error as error:
        raise UnusableDatabase(explain(database, str(error))) from error
    finally:
        writer.close()


def _is_same(location: str, folder: Path) -> bool:
    """Whether a file URI names the folder, by this path or through a link."""
    try:
        named = Path(unquote(urlparse(location).path))
        return named == folder or named.parent.samefile(folder.parent)
    except OSError:
        return False
