"""One pass of the mirror: jobs first, then the tables that they fill. Repeating it changes nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jigclu.files import locked
from orchestrate.mirror import sqlite
from orchestrate.mirror.address import has_tables, one_line, sqlite_file, tracking_uri
from orchestrate.mirror.job_content import stamps
from orchestrate.mirror.job_sync import BadFolder, Cursor, load_cursor, sync_job
from orchestrate.mirror.store import ARTIFACTS, RunGone, Tracking
from orchestrate.mirror.table_sync import Mirrored, sync_tables


class MirrorError(RuntimeError):
    """MLflow could not be updated; one line. The next sync completes the work."""


@dataclass(frozen=True)
class SyncReport:
    """`changed`: runs (of jobs, tables, cells) that were written to; `runs`: runs that were checked; `seconds`: wall time."""

    changed: int
    runs: int
    seconds: float


def sync(
    store: Path, jobs: Iterable[Path] | None = None, *, wait_for_lock: bool = True, tables: bool = True
) -> SyncReport:
    """Mirror the job folders (`jobs`; by default all under the store), then the tables that they fill.

    One writer at a time: holds <store>/.mirror/lock. Without `wait_for_lock`, does nothing if another process holds it.
    Raises MirrorError for any failure.
    """
    began = time.monotonic()
    wanted = None if jobs is None else {Path(path).name for path in jobs}
    try:
        tracking = Tracking(store)
        with locked(store / ".mirror" / "lock", wait_for_lock) as acquired:
            changed, runs = _sync(tracking, wanted, tables) if acquired else (0, 0)
    except MirrorError:
        raise
    except Exception as error:
        problem = problem_of(error, tracking_uri(store))
        raise MirrorError(f"MLflow was not updated, the job folders are unaffected: {problem}") from error
    return SyncReport(changed, runs, time.monotonic() - began)


def problem_of(error: Exception, uri: str) -> str:
    """The error in one line, which names the file if SQLite is the cause."""
    database, cause = sqlite_file(uri), re.search(r"\(sqlite3\.\w+\) ([^\n]+)", str(error))
    return sqlite.explain(database, cause[1]) if database and cause else one_line(error)


def _sync(tracking: Tracking, wanted: set[str] | None, tables: bool) -> tuple[int, int]:
    database = sqlite_file(tracking.uri)
    if database and tracking.own and has_tables(database):
        sqlite.relocate(database, tracking.store.absolute() / ARTIFACTS)
    try:
        return _pass(tracking, wanted, tables)
    except RunGone:  # a server that was emptied, or a run that someone deleted there
        tracking.forget()
        return _pass(tracking, wanted, tables)


def _pass(tracking: Tracking, wanted: set[str] | None, tables: bool) -> tuple[int, int]:
    live, changed, runs = tracking.live(), 0, 0
    jobs: dict[Path, Mirrored] = {}
    bad: list[str] = []
    for path in sorted(tracking.store.glob("*/*/job.json")):
        folder = path.parent
        cursor, readable = load_cursor(tracking, folder, live), True
        if wanted is None or folder.name in wanted:
            try:
                cursor, wrote = sync_job(tracking, folder, cursor)
                changed, runs = changed + wrote, runs + 1
            except BadFolder as error:
                bad.append(str(error))
                readable = False
        cursor = cursor or Cursor(run="")
        jobs[folder] = Mirrored(cursor.run, stamps(folder), readable, cursor.uses or [], cursor.seed)
    if tables:
        tables_changed, table_runs = sync_tables(tracking, jobs, live)
        changed, runs = changed + tables_changed, runs + table_runs
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise MirrorError(f"MLflow has every job but {bad[0]}{more}")
    return changed, runs
