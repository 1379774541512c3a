"""One job folder -> one MLflow run, with a cursor that says what is there already.

The cursor is dropped before anything is written and stored after: a pass that dies in between leaves none, and the next
one finds the run by its tag `jigclu.job`, asks which steps it has and goes on from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from jigclu.files import read_json, write_json
from orchestrate.mirror.job_content import JobRunSpec, job_run_spec, metric_name, number, stamps
from orchestrate.mirror.store import Point, Tracking

# Of what a folder says that its run should be: raised with wanted_run, so that older runs are brought up to date.
FORM = 3
TAIL = 256  # bytes before the offset that must be as they were: every line carries a time, so no two tails are equal


@dataclass(frozen=True)
class Cursor:
    """What MLflow has of a job. `steps`: the highest step mirrored of each metric. `first`, `source`: the first line's
    digest and the code and data behind it: a rerun by other code begins a new run, a resume does not.
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
    form: int = 1  # a cursor of before there were forms


def cursor_path(tracking: Tracking, folder: Path) -> Path:
    return tracking.cursors / f"{folder.name}.json"


def load_cursor(tracking: Tracking, folder: Path, live: frozenset[str] | None) -> Cursor | None:
    """None where there is none, or it cannot be read, or its run is not among the `live` ones."""
    try:
        cursor = Cursor(**read_json(cursor_path(tracking, folder)))
    except (TypeError, ValueError):
        return None
    return None if live is not None and cursor.run not in live else cursor


def sync_job(tracking: Tracking, folder: Path, cursor: Cursor | None) -> tuple[Cursor, bool]:
    """Bring the job's run up to date. Returns the new cursor and whether anything was written to MLflow."""
    seen = stamps(folder)
    if cursor and cursor.stamps == seen and cursor.form == FORM:
        return cursor, False
    wanted, path = job_run_spec(folder), cursor_path(tracking, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if cursor:
        after, points = _read_on(folder, cursor, wanted, seen)
        rerun = _is_rerun(cursor, after)
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
        after, points = _read_on(folder, cursor, wanted, seen)
    _write(tracking, folder, wanted, cursor, after, points)
    write_json(path, dataclasses.asdict(after))
    return after, True


def _artifacts(seen: dict[str, str]) -> dict[str, str]:
    return {name: stamp for name, stamp in seen.items() if name not in ("status.json", "metrics.jsonl")}


def _write(
    tracking: Tracking, folder: Path, wanted: JobRunSpec, cursor: Cursor, after: Cursor, points: list[Point]
) -> None:
    """The difference between the two cursors; the status last, so that a finished run is a whole one."""
    run = tracking.run(cursor.run)
    changed = {name for name, value in after.written.items() if cursor.written.get(name) != value}
    present = run.data.params  # immutable: a changed one is refused
    tracking.log(
        cursor.run,
        points + (wanted.points if "points" in changed else []),
        {key: value for key, value in wanted.params.items() if key not in present} if "params" in changed else {},
        wanted.tags if "tags" in changed else {},
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
    """The job's run by its tag, with the steps that it has; else a new run."""
    for run in tracking.find(wanted.experiment, job=folder.name):
        names = [name for name in run.data.metrics if not name.startswith("result.")]
        histories = {name: tracking.client.get_metric_history(run.info.run_id, name) for name in names}
        steps = {name: max(point.step for point in history) for name, history in histories.items()}
        return Cursor(run=run.info.run_id, steps=steps)
    made = tracking.client.create_run(
        tracking.experiment(wanted.experiment),
        start_time=wanted.start,
        tags={"jigclu.job": folder.name},
        run_name=wanted.name,
    )
    return Cursor(run=made.info.run_id)


def _is_rerun(before: Cursor, after: Cursor) -> bool:
    """The curve begins anew and other code or data draws it: its points must not be mixed with the old ones."""
    return bool(before.first) and before.first != after.first and before.source != after.source


def _read_on(folder: Path, cursor: Cursor, wanted: JobRunSpec, seen: dict[str, str]) -> tuple[Cursor, list[Point]]:
    """The whole lines past the cursor as points, and the cursor as it will be when all is written.

    A file that was cut back is read from its start. A step that is mirrored already is skipped, metric by metric:
    training is bit-deterministic, so a resumed job logs the same value again, only at another time.
    """
    path = folder / "metrics.jsonl"
    data = path.read_bytes() if path.exists() else b""
    offset, lines = cursor.offset, cursor.lines
    if offset > len(data) or _tail(data, offset) != cursor.tail:
        offset = lines = 0
    end = data.rfind(b"\n") + 1  # a torn last line waits for its end
    steps, points = dict(cursor.steps), []
    for line in data[offset:end].splitlines():
        lines += 1
        points += _points(line, steps)
    first, source = cursor.first, cursor.source
    if offset == 0 and end > 0:
        first, source = hashlib.sha256(data[: data.index(b"\n")]).hexdigest()[:16], wanted.source
    offset = max(offset, end)
    tail = _tail(data, offset)
    return Cursor(cursor.run, seen, offset, lines, tail, first, source, steps, wanted.digests, FORM), points


def _tail(data: bytes, offset: int) -> str:
    return hashlib.sha256(data[max(0, offset - TAIL) : offset]).hexdigest()[:16] if offset else ""


def _points(line: bytes, steps: dict[str, int]) -> list[Point]:
    """The line's points that are new; raises their steps in `steps`."""
    try:
        values = json.loads(line)
        step, millis = int(values.pop("step")), int(values.pop("time", 0) * 1000)
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    points = []
    for key, value in values.items():
        name, known = metric_name(key), number(value)
        if known is not None and step > steps.get(name, -1):
            points.append((name, known, millis, step))
            steps[name] = step
    return points
