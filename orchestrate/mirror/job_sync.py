"""One job folder -> one MLflow run, with a cursor that records what MLflow already has.

The cursor is deleted before anything is written and stored afterwards: if a pass dies in between there is none, and the
next pass finds the run by its job tag, reads which steps it has and continues from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jigclu.files import read_json, write_json
from jigclu.job_folder import JobFolder
from orchestrate.mirror.address import one_line
from orchestrate.mirror.job_content import JobRunSpec, job_run_spec, number, stage_metric, stamps
from orchestrate.mirror.store import Point, Tracking
from orchestrate.mirror.tags import FORM as FORM_TAG
from orchestrate.mirror.tags import JOB, STORE

if TYPE_CHECKING:
    from mlflow.entities import Run

# Version of job_run_spec: raised when it changes. MLflow can neither rename a metric nor change a run's start, so a job
# whose run has an older form gets a new run, and the old one is deleted.
FORM = 5
TAIL = 256  # bytes before the offset that must be unchanged: every line carries a time, so no two tails are equal


class BadFolder(Exception):
    """A job folder with a file that cannot be read."""


@dataclass(frozen=True)
class Cursor:
    """What MLflow has of a job. `steps`: the highest mirrored step of each metric. `first`, `source`: the digest of the
    first line, and the code and data that produced it: a rerun by different code begins a new run, a resume does not.
    """

    run: str
    stamps: dict[str, str] = field(default_factory=dict)
    offset: int = 0
    lines: int = 0
    tail: str = ""
    first: str = ""
    source: str = ""
    steps: dict[str, int] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    form: int = 1  # cursors written before versioning have none
    start: int = 0  # of the run, unix ms
    uses: list[dict[str, str]] | None = (
        None  # the cells that it fills, for when job.json is unreadable; None: not recorded
    )
    seed: int = 0


def cursor_path(tracking: Tracking, folder: Path) -> Path:
    return tracking.cursors / f"{folder.name}.json"


def load_cursor(tracking: Tracking, folder: Path, live: frozenset[str] | None) -> Cursor | None:
    """None if there is none, if it cannot be read, or if its run is not among the `live` ones."""
    try:
        cursor = Cursor(**read_json(cursor_path(tracking, folder)))
    except (TypeError, ValueError):
        return None
    return None if live is not None and cursor.run not in live else cursor


def sync_job(tracking: Tracking, folder: Path, cursor: Cursor | None) -> tuple[Cursor, bool]:
    """Update the job's run. Returns the new cursor and whether anything was written to MLflow."""
    seen = stamps(folder)
    if cursor and cursor.stamps == seen and cursor.form == FORM and cursor.uses is not None:
        return cursor, False
    try:
        wanted, path = job_run_spec(folder), cursor_path(tracking, folder)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        problem = one_line(error).replace(f"{folder}/", "")
        raise BadFolder(f"{folder.parent.name}/{folder.name}, which cannot be read: {problem}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    if cursor:
        after, points = _read_new_lines(folder, cursor, wanted, seen)
        rerun = _needs_new_run(cursor, after, wanted)
        same = cursor.written == after.written and _artifacts(cursor.stamps) == _artifacts(seen)
        if same and not points and not rerun:
            write_json(path, dataclasses.asdict(after))  # a heartbeat
            return after, False
        path.unlink(missing_ok=True)
        if rerun:
            tracking.run(cursor.run)
            tracking.client.delete_run(cursor.run)
            cursor = None
    if not cursor:
        cursor = _find_or_create(tracking, folder, wanted)
        after, points = _read_new_lines(folder, cursor, wanted, seen)
    _write(tracking, folder, wanted, cursor, after, points)
    write_json(path, dataclasses.asdict(after))
    return after, True


def _artifacts(seen: dict[str, str]) -> dict[str, str]:
    return {name: stamp for name, stamp in seen.items() if name not in ("status.json", "metrics.jsonl")}


def _write(
    tracking: Tracking, folder: Path, wanted: JobRunSpec, cursor: Cursor, after: Cursor, points: list[Point]
) -> None:
    """Write the difference between the two cursors; the status last, so that a finished run is complete."""
    run = tracking.run(cursor.run)
    changed = {name for name, value in after.written.items() if cursor.written.get(name) != value}
    present = run.data.params  # immutable: MLflow rejects a changed one
    tracking.log(
        cursor.run,
        points + (wanted.points if "points" in changed else []),
        {key: value for key, value in wanted.params.items() if key not in present} if "params" in changed else {},
        {**wanted.tags, STORE: tracking.store_id} if "tags" in changed else {},
    )
    for name, stamp in _artifacts(after.stamps).items():
        if cursor.stamps.get(name) != stamp:
            tracking.client.log_artifact(cursor.run, str(folder / name), "figures" if "/" in name else None)
    status, end = wanted.status
    if "status" in changed and end:
        tracking.client.set_terminated(cursor.run, status, end)
    elif "status" in changed:
        tracking.client.update_run(cursor.run, status)


def _find_or_create(tracking: Tracking, folder: Path, wanted: JobRunSpec) -> Cursor:
    """The job's run, found by its tags, with the steps that it has; else a new run.

    Further runs of the job are deleted: when someone restores a deleted experiment, its deleted runs come back, too.
    """
    found: Run | None = None
    for run in tracking.find(wanted.experiment, {JOB: folder.name}):
        if not _is_this_jobs(tracking, folder, run):
            continue
        current = run.data.tags.get(FORM_TAG) == str(FORM)
        if found or not current or (wanted.started and run.info.start_time != wanted.start):
            tracking.client.delete_run(run.info.run_id)
        else:
            found = run
    if found:
        names = [name for name in found.data.metrics if not name.startswith(f"{folder.parent.name}/result.")]
        histories = {name: tracking.client.get_metric_history(found.info.run_id, name) for name in names}
        steps = {name: max(point.step for point in history) for name, history in histories.items()}
        return Cursor(run=found.info.run_id, steps=steps, form=FORM, start=found.info.start_time)
    created = tracking.client.create_run(
        tracking.experiment(wanted.experiment),
        start_time=wanted.start,
        tags={JOB: folder.name, STORE: tracking.store_id, FORM_TAG: str(FORM)},
        run_name=wanted.name,
    )
    return Cursor(run=created.info.run_id, form=FORM, start=wanted.start)


def _is_this_jobs(tracking: Tracking, folder: Path, run: Run) -> bool:
    """Whether a run with the job's id is of this store: the id holds neither code nor data, and stores may share MLflow.

    A run of an older mirror names no store. It is this job's if it ended when this job did, else if its curve begins
    when this one does, else if neither has anything yet.
    """
    if tracking.own or run.data.tags.get(STORE) == tracking.store_id:
        return True
    if run.data.tags.get(STORE):
        return False
    files = JobFolder(folder)
    finished, first = files.result.get("finished"), next(files.metrics(), {})
    if run.info.status == "FINISHED" or finished:
        return finished is not None and run.info.end_time == int(1000 * finished)
    curve = next((name for name in first if name in run.data.metrics), None)
    if curve is None:
        return not run.data.metrics and not first
    history = tracking.client.get_metric_history(run.info.run_id, curve)
    return min(point.timestamp for point in history) == int(1000 * first.get("time", 0))


def _needs_new_run(before: Cursor, after: Cursor, wanted: JobRunSpec) -> bool:
    """What MLflow cannot change in a run: the names of its metrics, its start (a job that was pending has begun)."""
    return before.form != FORM or (wanted.started and before.start != wanted.start) or _is_rerun(before, after)


def _is_rerun(before: Cursor, after: Cursor) -> bool:
    """The curve starts over with different code or data: its points must not be mixed with the old ones."""
    return bool(before.first) and before.first != after.first and before.source != after.source


def _read_new_lines(
    folder: Path, cursor: Cursor, wanted: JobRunSpec, seen: dict[str, str]
) -> tuple[Cursor, list[Point]]:
    """The complete lines after the cursor as points, and the cursor for when all of them are written.

    A file that was cut back is read from its start. Steps that are already mirrored are skipped, metric by metric:
    training is bit-deterministic, so a resumed job logs the same value again, only at another time.
    """
    path = folder / "metrics.jsonl"
    data = path.read_bytes() if path.exists() else b""
    offset, lines = cursor.offset, cursor.lines
    if offset > len(data) or _tail(data, offset) != cursor.tail:
        offset = lines = 0
    end = data.rfind(b"\n") + 1  # an incomplete last line is left for the next pass
    steps, points = dict(cursor.steps), []
    for line in data[offset:end].splitlines():
        lines += 1
        points += _points(line, steps, folder.parent.name)
    first, source = cursor.first, cursor.source
    if offset == 0 and end > 0:
        first, source = hashlib.sha256(data[: data.index(b"\n")]).hexdigest()[:16], wanted.source
    offset = max(offset, end)
    tail = _tail(data, offset)
    after = Cursor(
        run=cursor.run,
        stamps=seen,
        offset=offset,
        lines=lines,
        tail=tail,
        first=first,
        source=source,
        steps=steps,
        written=wanted.digests,
        form=FORM,
        start=cursor.start,
        uses=wanted.uses,
        seed=wanted.seed,
    )
    return after, points


def _tail(data: bytes, offset: int) -> str:
    return hashlib.sha256(data[max(0, offset - TAIL) : offset]).hexdigest()[:16] if offset else ""


def _points(line: bytes, steps: dict[str, int], stage: str) -> list[Point]:
    """The line's new points; updates `steps`."""
    try:
        values = json.loads(line)
        step, millis = int(values.pop("step")), int(values.pop("time", 0) * 1000)
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    points = []
    for key, value in values.items():
        name, finite = stage_metric(stage, key), number(value)
        if finite is not None and step > steps.get(name, -1):
            points.append((name, finite, millis, step))
            steps[name] = step
    return points
