"""Runs of a sqlite tracking store, read without MLflow's objects: of 10,000 runs in 2 s where its client takes 25.

A test holds what this reads equal to what the client says, so that a new schema is noticed; a server is always asked by the client.
"""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote


@dataclass
class Info:
    """As mlflow.entities.RunInfo has it."""

    run_id: str
    run_name: str
    status: str
    end_time: int | None
    artifact_uri: str
    experiment_id: str


@dataclass
class Data:
    """As mlflow.entities.RunData has it; of a metric its latest value."""

    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    info: Info
    data: Data


def runs(database: Path, experiment: str) -> Iterator[Run]:
    """Active runs of the active experiment of that name, newest first."""
    where = "from {} join runs using (run_uuid) join experiments using (experiment_id)"
    which = "where experiments.name = ? and experiments.lifecycle_stage = 'active' and runs.lifecycle_stage = 'active' "
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=20)) as link:
        link.execute("begin")  # one state of the store, whoever writes meanwhile
        data: dict[str, Data] = defaultdict(Data)
        for table in ("tags", "params"):
            query = f"select run_uuid, key, value {where.format(table)} {which}"
            for run, key, value in link.execute(query, [experiment]):
                getattr(data[run], table)[key] = value
        query = f"select run_uuid, key, value, is_nan {where.format('latest_metrics')} {which}"
        for run, key, value, is_nan in link.execute(query, [experiment]):
            data[run].metrics[key] = math.nan if is_nan else value
        query = (
            "select run_uuid, runs.name, status, end_time, artifact_uri, cast(experiment_id as text) from runs "
            f"join experiments using (experiment_id) {which} order by start_time desc, run_uuid"
        )
        for row in link.execute(query, [experiment]).fetchall():
            yield Run(Info(*row), data[row[0]])
