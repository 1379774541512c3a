"""One pass of the mirror: jobs first, then the tables that they fill. Repeating it changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jigclu.files import locked
from orchestrate.mirror.address import one_line
from orchestrate.mirror.job_content import stamps
from orchestrate.mirror.job_sync import BadFolder, Cursor, load_cursor, sync_job
from orchestrate.mirror.store import RunGone, Tracking
from orchestrate.mirror.table_sync import sync_tables


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
    began, tracking = time.monotonic(), Tracking(store)
    wanted = None if jobs is None else {Path(path).name for path in jobs}
    try:
        with locked(store / ".mirror" / "lock", wait_for_lock) as acquired:
            changed, runs = _sync(tracking, wanted, tables) if acquired else (0, 0)
    except MirrorError:
        raise
    except Exception as error:
        raise MirrorError(f"MLflow was not updated, the job folders are unaffected: {one_line(error)}") from error
    return SyncReport(changed, runs, time.monotonic() - began)


def _sync(tracking: Tracking, wanted: set[str] | None, tables: bool) -> tuple[int, int]:
    try:
        return _pass(tracking, wanted, tables)
    except RunGone:  # a server that was emptied, or a run that someone deleted there
        tracking.forget()
        return _pass(tracking, wanted, tables)


def _pass(tracking: Tracking, wanted: set[str] | None, tables: bool) -> tuple[int, int]:
    live, changed, runs = tracking.live(), 0, 0
    cursors: dict[Path, Cursor | None] = {}
    bad: list[str] = []
    for path in sorted(tracking.store.glob("*/*/job.json")):
        folder = path.parent
        cursor = load_cursor(tracking, folder, live)
        if wanted is None or folder.name in wanted:
            try:
                cursor, wrote = sync_job(tracking, folder, cursor)
            except BadFolder as error:
                bad.append(str(error))
                continue
            changed, runs = changed + wrote, runs + 1
        cursors[folder] = cursor
    if tables:
        jobs = {folder: (cursor.run if cursor else "", stamps(folder)) for folder, cursor in cursors.items()}
        tables_changed, table_runs = sync_tables(tracking, jobs, live)
        changed, runs = changed + tables_changed, runs + table_runs
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise MirrorError(f"MLflow has every job but {bad[0]}{more}")
    return changed, runs
