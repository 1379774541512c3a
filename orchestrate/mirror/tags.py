"""Every tag of the mirror's MLflow runs: its key, and records that become tags and are read back from them. No mlflow.

The mirror writes JobRecord, TableRecord and CellRecord; reports/frames.py reads them. STALE, VERDICT, CLAIMS and
REPORT_DIGEST are written by reports/publish.py, and read only by the next report, to see what changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

JOB, TABLE, CELL, PROTOCOL, VARIANT = "jigclu.job", "jigclu.table", "jigclu.cell", "jigclu.protocol", "jigclu.variant"
STORE = "jigclu.store"  # id of the store whose run it is (identity.py)
FORM = "jigclu.form"  # job: the version of the mirror that made the run
ORDER = "jigclu.order"  # tables and cells: sorted by it, a table stands before its cells, in the paper's order
STALE = "jigclu.stale"  # job: not empty if the code has changed since it ran
VERDICT = "jigclu.verdict"  # cell: `reproduced` or `off by ...`
CLAIMS = "jigclu.claims"  # table: how many claims have each outcome
REPORT_DIGEST = "jigclu.report_digest"  # table: of the files that were last uploaded
# MLflow's own tags.
NOTE, GIT_COMMIT, PARENT_RUN = "mlflow.note.content", "mlflow.source.git.commit", "mlflow.parentRunId"


class Codec(NamedTuple):
    """How a field's value becomes a tag's text, and how the text is read."""

    write: Callable[[Any], str]
    read: Callable[[str], Any]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _list(text: str) -> tuple[Any, ...]:
    """JSON, or words between commas."""
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        return _words(text)
    return tuple(parsed) if isinstance(parsed, list) else (parsed,)


TEXT = Codec(str, str)
NUMBER = Codec(lambda number: "" if number is None else f"{number:.6g}", _number)
WORDS = Codec(",".join, _words)
LIST = Codec(json.dumps, _list)


def _tag(key: str, default: Any = "", codec: Codec = TEXT) -> Any:
    return field(default=default, metadata={"key": key, "codec": codec})


@dataclass(frozen=True, kw_only=True)
class Record:
    """A dataclass whose fields are tags."""

    @classmethod
    def key(cls, name: str) -> str:
        """The tag's key of a field; KeyError if there is no such field."""
        return str({item.name: item.metadata["key"] for item in fields(cls)}[name])

    def to_tags(self) -> dict[str, str]:
        """Tag key -> text."""
        return {item.metadata["key"]: item.metadata["codec"].write(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self:
        """The record of a run's tags; a field whose tag is missing has its default."""
        present = [item for item in fields(cls) if item.metadata["key"] in tags]
        return cls(**{item.name: item.metadata["codec"].read(tags[item.metadata["key"]]) for item in present})


@dataclass(frozen=True, kw_only=True)
class JobRecord(Record):
    """A job's run. `ranks`: devices; `folder`, `encoder` (its weights): relative to the store; `result`: its main number
    in words. `estimated_hours`: device-hours at submission; `spent_hours`: over all attempts, start-up included; None
    while it runs.
    """

    job: str = _tag(JOB)
    stage: str = _tag("jigclu.stage")
    label: str = _tag("jigclu.label")
    experiments: tuple[str, ...] = _tag("jigclu.experiments", (), WORDS)
    seed: str = _tag("jigclu.seed")
    protocol: str = _tag(PROTOCOL)
    scale: str = _tag("jigclu.scale")
    state: str = _tag("jigclu.state")
    message: str = _tag("jigclu.message")
    command: str = _tag("jigclu.command")
    device: str = _tag("jigclu.device")
    versions: str = _tag("jigclu.versions")
    slurm_job_id: str = _tag("jigclu.slurm_job_id")
    attempt: float | None = _tag("jigclu.attempt", None, NUMBER)
    ranks: float | None = _tag("jigclu.ranks", None, NUMBER)
    estimated_hours: float | None = _tag("jigclu.estimated_hours", None, NUMBER)
    spent_hours: float | None = _tag("jigclu.spent_hours", None, NUMBER)
    spent_seconds: float | None = _tag("jigclu.spent_seconds", None, NUMBER)
    folder: str = _tag("jigclu.folder")
    encoder: str = _tag("jigclu.encoder")
    result: str = _tag("jigclu.result")
    data_fingerprint: str = _tag("jigclu.data_fingerprint")
    source_digest: str = _tag("jigclu.source_digest")
    commit: str = _tag(GIT_COMMIT)
    note: str = _tag(NOTE)


@dataclass(frozen=True, kw_only=True)
class TableKey(Record):
    """Identifies a table: the tags that its run and the runs of its cells share."""

    table: str = _tag(TABLE)
    scale: str = _tag("jigclu.scale")
    protocol: str = _tag(PROTOCOL)
    variant: str = _tag(VARIANT)


@dataclass(frozen=True, kw_only=True)
class TableRecord(TableKey):
    """A table's run, the parent of its cells' runs."""

    order: str = _tag(ORDER)
    note: str = _tag(NOTE)


@dataclass(frozen=True, kw_only=True)
class CellRecord(TableKey):
    """A cell's run. `values`, `seeds`: of the finished jobs, in the same order; `job_runs`: the jobs' MLflow runs."""

    cell: str = _tag(CELL)
    order: str = _tag(ORDER)
    row: str = _tag("jigclu.row")
    column: str = _tag("jigclu.column")
    jobs: tuple[str, ...] = _tag("jigclu.jobs", (), WORDS)
    job_runs: tuple[str, ...] = _tag("jigclu.job_runs", (), WORDS)
    commits: tuple[str, ...] = _tag("jigclu.commit", (), WORDS)
    state: str = _tag("jigclu.state", "not run")
    values: tuple[Any, ...] = _tag("jigclu.values", (), LIST)
    seeds: tuple[Any, ...] = _tag("jigclu.seeds", (), LIST)
    measured: str = _tag("jigclu.measured")
    note: str = _tag(NOTE)
