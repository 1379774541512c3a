"""MLflow -> pandas frames, one search per MLflow experiment; and the artifacts and curves of single runs."""

from __future__ import annotations

import math
import re
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import pandas as pd

from orchestrate.mirror import sqlite
from orchestrate.mirror.store import active_experiment, read_runs
from orchestrate.mirror.tags import (
    CELL,
    CLAIMS,
    JOB,
    REPORT_DIGEST,
    STALE,
    STORE,
    TABLE,
    VERDICT,
    CellRecord,
    JobRecord,
    TableRecord,
)
from orchestrate.mirror.views import apply_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SCALE = TableRecord.key("scale")
HUGE = 1e300  # MLflow stores an infinity as 1.797e308
TABLE_KEY = ["table", "scale", "protocol", "variant"]
TABLE_COLUMNS = [*TABLE_KEY, "run_id", "digest", "published_claims", "experiment_id"]
CELL_COLUMNS = [
    *(*TABLE_KEY, "cell", "run_id", "state", "published_verdict", "measured", "jobs", "commits"),
    *("values", "seeds", "value", "std", "n"),
]
JOB_COLUMNS = [
    *("job", "run_id", "name", "stage", "seed", "state", "message", "commit", "command", "device", "versions"),
    *("seconds", "finished", "upstream", "params", "metrics", "uri", "experiment_id"),
    *("published_stale", "slurm_id", "attempt", "ranks", "estimated_hours", "spent_hours", "spent_seconds"),
    *("folder", "fingerprint", "source"),
]
STATUS_STATES = {
    "SCHEDULED": "pending",
    "RUNNING": "running",
    "KILLED": "interrupted",
    "FINISHED": "done",
    "FAILED": "failed",
}


@dataclass(frozen=True)
class Frames:
    """`jobs`: a row per job; `cells`: per cell's run; `tables`: per parent run. Columns: the lists above."""

    jobs: pd.DataFrame
    cells: pd.DataFrame
    tables: pd.DataFrame


def finite(number: Any) -> float | None:
    """A float; None if there is none, or it is NaN or infinite."""
    if number is None or not math.isfinite(number) or abs(number) > HUGE:
        return None
    return float(number)


def load(client: MlflowClient | None, scales: list[str], store: str | None = None) -> Frames:
    """Every job, cell and table run of the scales. Other MLflow experiments and runs without the suite's tags are ignored.

    `store`: the id of the store whose runs count, where other stores may use the same MLflow; None: all runs count.
    """
    jobs: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    tables: list[dict[str, Any]] = []
    for scale in scales:
        if client is None:
            break
        jobs += [_job(run) for run in _runs(client, f"jigclu-{scale}", store) if JOB in run.data.tags]
        for run in _runs(client, f"jigclu-{scale}-tables", store):
            if CELL in run.data.tags:
                cells.append(_cell(run, scale))
            elif TABLE in run.data.tags:
                tables.append(_table(run, scale))
    return Frames(
        # The search returns the newest first: of two runs for one job or cell, the newer counts.
        pd.DataFrame(jobs, columns=JOB_COLUMNS).drop_duplicates("job"),
        pd.DataFrame(cells, columns=CELL_COLUMNS).drop_duplicates([*TABLE_KEY, "cell"]),
        pd.DataFrame(tables, columns=TABLE_COLUMNS).drop_duplicates(TABLE_KEY),
    )


def _runs(client: MlflowClient, experiment: str, store: str | None) -> Iterator[Run | sqlite.Run]:
    for run in read_runs(client, experiment):
        if store is None or run.data.tags.get(STORE) == store:
            yield run


def apply_views(client: MlflowClient | None, scales: list[str]) -> None:
    """Give the scales' experiments their views: those made by an older mirror have none."""
    if client is None:
        return
    for scale in scales:
        for name in (f"jigclu-{scale}", f"jigclu-{scale}-tables"):
            if (found := active_experiment(client, name)) is not None:
                apply_view(client, found)


def _job(run: Run | sqlite.Run) -> dict[str, Any]:
    record, params = JobRecord.from_tags(run.data.tags), run.data.params
    metrics = {name.removeprefix(f"{record.stage}/"): value for name, value in run.data.metrics.items()}
    seconds = metrics.get("result.seconds")
    return {
        "job": record.job,
        "run_id": run.info.run_id,
        "name": run.info.run_name or record.job,
        "stage": record.stage,
        "seed": record.seed,
        "state": record.state or STATUS_STATES.get(run.info.status, ""),
        "message": record.message,
        "commit": record.commit,
        "command": record.command,
        "device": record.device,
        "versions": record.versions,
        "seconds": finite(float(seconds)) if seconds else None,
        "finished": run.info.end_time / 1000 if run.info.end_time else None,
        "upstream": re.findall(r"\b[0-9a-f]{12}\b", params.get("upstream", "")),
        "params": params,
        "metrics": metrics,
        "uri": run.info.artifact_uri or "",
        "experiment_id": run.info.experiment_id,
        "published_stale": run.data.tags.get(STALE, ""),
        "slurm_id": record.slurm_job_id,
        "attempt": record.attempt,
        "ranks": record.ranks,
        "estimated_hours": record.estimated_hours,
        "spent_hours": record.spent_hours,
        "spent_seconds": record.spent_seconds,
        "folder": record.folder,
        "fingerprint": record.data_fingerprint,
        "source": record.source_digest,
    }


def _cell(run: Run | sqlite.Run, scale: str) -> dict[str, Any]:
    record, metrics = CellRecord.from_tags({SCALE: scale} | run.data.tags), dict(run.data.metrics)
    values = [float(value) for value in record.values if isinstance(value, int | float)]
    if values and len(values) == len(record.values) and all(map(math.isfinite, values)):
        # The metrics are rounded for MLflow's page.
        metrics["value"] = statistics.fmean(values)
        metrics |= {"std": statistics.stdev(values)} if len(values) > 1 else {}
    return {
        **{name: getattr(record, name) for name in [*TABLE_KEY, "cell", "state", "measured"]},
        "run_id": run.info.run_id,
        "published_verdict": run.data.tags.get(VERDICT, ""),
        "jobs": list(record.jobs),
        "commits": list(record.commits),
        "values": [finite(value) if isinstance(value, int | float) else None for value in record.values],
        "seeds": list(record.seeds),
        **{name: metrics.get(name) for name in ("value", "std", "n")},
    }


def _table(run: Run | sqlite.Run, scale: str) -> dict[str, Any]:
    record = TableRecord.from_tags({SCALE: scale} | run.data.tags)
    return {
        **{name: getattr(record, name) for name in TABLE_KEY},
        "run_id": run.info.run_id,
        "digest": run.data.tags.get(REPORT_DIGEST, ""),
        "published_claims": run.data.tags.get(CLAIMS, ""),
        "experiment_id": run.info.experiment_id,
    }


def artifact(client: MlflowClient | None, run_id: str, uri: str, path: str) -> bytes | None:
    """An artifact's bytes; None if it is missing or the artifact store does not answer."""
    parts = urlparse(uri)
    if parts.scheme in ("", "file"):
        local = Path(unquote(parts.path)) / path
        return local.read_bytes() if local.is_file() else None
    if client is None:
        return None
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, path, folder)).read_bytes()
        except (MlflowException, OSError):
            return None


def history(client: MlflowClient | None, run_id: str, metric: str, points: int = 300) -> list[tuple[int, float]]:
    """(step, value) of a metric in step order, thinned to about `points` by averaging neighbours; NaN left out."""
    measured = client.get_metric_history(run_id, metric) if client else []
    pairs = sorted((point.step, float(point.value)) for point in measured if finite(point.value) is not None)
    width = max(1, math.ceil(len(pairs) / points))
    groups = [pairs[start : start + width] for start in range(0, len(pairs), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
