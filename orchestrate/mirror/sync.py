"""MLflow as a mirror of the store: one run a job, one table a parent with one child a cell. Idempotent and rebuildable.

Everything in MLflow comes from the job folders; delete it and the next `sync` makes it again. A cursor a job, under
<store>/.mirror/<digest of the tracking URI>/, says what is mirrored, so that a pass over jobs that did not change is a
few stat calls each and does not import mlflow. Delete that folder to have every run looked for again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jigclu.files import locked
from orchestrate.mirror.address import one_line
from orchestrate.mirror.job_content import stamps
from orchestrate.mirror.job_sync import Cursor, load_cursor, sync_job
from orchestrate.mirror.store import RunGone, Tracking
from orchestrate.mirror.table_sync import sync_tables


class MirrorError(RuntimeError):
    """The mirror could not be brought up to date; one line. The next sync completes the work."""


@dataclass(frozen=True)
class SyncReport:
    """`changed`: runs (of jobs, tables, cells) that were written to; `runs`: runs looked after; `seconds`: wall."""

    changed: int
    runs: int
    seconds: float


def sync(
    store: Path, jobs: Iterable[Path] | None = None, *, wait_for_lock: bool = True, tables: bool = True
) -> SyncReport:
    """Mirror the job folders (`jobs`, else all under the store), then the tables that they fill.

    One writer at a time: holds <store>/.mirror/lock; with `wait_for_lock` off and another at it, nothing is done.
    Raises MirrorError, whatever went wrong.
    """
    began, tracking = time.monotonic(), Tracking(store)
    wanted = None if jobs is None else {Path(path).name for path in jobs}
    try:
        with locked(store / ".mirror" / "lock", wait_for_lock) as mine:
            changed, runs = _sync(tracking, wanted, tables) if mine else (0, 0)
    except Exception as error:
        raise MirrorError(f"MLflow is behind, the job folders are whole: {one_line(error)}") from error
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
    for path in sorted(tracking.store.glob("*/*/job.json")):
        folder = path.parent
        cursor = load_cursor(tracking, folder, live)
        if wanted is None or folder.name in wanted:
            cursor, wrote = sync_job(tracking, folder, cursor)
            changed, runs = changed + wrote, runs + 1
        cursors[folder] = cursor
    if tables:
        known = {folder: (cursor.run if cursor else "", stamps(folder)) for folder, cursor in cursors.items()}
        more = sync_tables(tracking, known, live)
        changed, runs = changed + more[0], runs + more[1]
    return changed, runs
