"""MLflow -> pandas frames: one paged search an MLflow experiment. And the artifacts and curves of single runs."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import pandas as pd

from orchestrate.mirror import sqlite
from orchestrate.mirror.address import sqlite_file
from orchestrate.mirror.views import apply_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 1000
HUGE = 1e300  # MLflow stores an infinity as 1.797e308
TABLE_KEY = ["table", "scale", "protocol", "variant"]
TABLE_COLUMNS = [*TABLE_KEY, "run_id", "digest", "claims", "experiment_id"]
CELL_COLUMNS = [
    *(*TABLE_KEY, "cell", "run_id", "state", "message", "verdict", "measured", "jobs", "commits"),
    *("values", "seeds", "value", "std", "n"),
]
JOB_COLUMNS = [
    *("job", "run_id", "name", "stage", "seed", "state", "message", "commit", "command", "device", "versions"),
    *(
        "seconds",
        "finished",
        "upstream",
        "params",
        "metrics",
        "uri",
        "experiment_id",
        "told_stale",
        "slurm_id",
        "attempt",
    ),
    *("ranks", "estimated_hours", "folder", "fingerprint", "source"),
]
DIGEST_TAG, STALE_TAG = "jigclu.report_digest", "jigclu.stale"
VERDICT_TAG, CLAIMS_TAG = "jigclu.verdict", "jigclu.claims"
STATUS_STATES = {
    "SCHEDULED": "pending",
    "RUNNING": "running",
    "KILLED": "interrupted",
    "FINISHED": "done",
    "FAILED": "failed",
}


@dataclass(frozen=True)
class Frames:
    """`jobs`: a row a job; `cells`: a row a cell's run; `tables`: a row a parent run. Columns: the lists above."""

    jobs: pd.DataFrame
    cells: pd.DataFrame
    tables: pd.DataFrame


def finite(number: Any) -> float | None:
    """A float; None where there is none, or it is NaN or infinite."""
    if number is None or not math.isfinite(number) or abs(number) > HUGE:
        return None
    return float(number)


def load(client: MlflowClient | None, scales: list[str]) -> Frames:
    """Every job, cell and table run of the scales. MLflow experiments and tags that are not ours are left out."""
    jobs: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    tables: list[dict[str, Any]] = []
    for scale in scales if client else ():
        jobs += [_job(run) for run in _runs(client, f"jigclu-{scale}") if "jigclu.job" in run.data.tags]
        for run in _runs(client, f"jigclu-{scale}-tables"):
            if "jigclu.cell" in run.data.tags:
                cells.append(_cell(run, scale))
            elif "jigclu.table" in run.data.tags:
                tables.append(_table(run, scale))
    return Frames(
        # Newest first comes out of the search: of two mirrors of one thing, the newer counts.
        pd.DataFrame(jobs, columns=JOB_COLUMNS).drop_duplicates("job"),
        pd.DataFrame(cells, columns=CELL_COLUMNS).drop_duplicates([*TABLE_KEY, "cell"]),
        pd.DataFrame(tables, columns=TABLE_COLUMNS).drop_duplicates(TABLE_KEY),
    )


def apply_views(client: MlflowClient | None, scales: list[str]) -> None:
    """See that the scales' experiments have their views: those of an older mirror have not."""
    for scale in scales if client else ():
        for name in (f"jigclu-{scale}", f"jigclu-{scale}-tables"):
            found = client.get_experiment_by_name(name) if client else None
            if client and found and found.lifecycle_stage == "active":
                apply_view(client, found)


def _runs(client: MlflowClient | None, name: str) -> Iterator[Any]:
    """Runs of the MLflow experiment, newest first: as its client gives them, or the like."""
    if client is None:
        return
    if (database := sqlite_file(client.tracking_uri)) is not None:
        yield from sqlite.runs(database, name)
        return
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        return
    token: str | None = None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _job(run: Any) -> dict[str, Any]:
    tags, params = run.data.tags, run.data.params
    seconds = run.data.metrics.get("result.seconds")
    return {
        "job": tags["jigclu.job"],
        "run_id": run.info.run_id,
        "name": run.info.run_name or tags["jigclu.job"],
        "stage": tags.get("jigclu.stage", ""),
        "seed": tags.get("jigclu.seed", ""),
        "state": tags.get("jigclu.state") or STATUS_STATES.get(run.info.status, ""),
        "message": tags.get("jigclu.message", ""),
        "commit": tags.get("mlflow.source.git.commit", ""),
        "command": tags.get("jigclu.command", ""),
        "device": tags.get("jigclu.device", ""),
        "versions": tags.get("jigclu.versions", ""),
        "seconds": finite(float(seconds)) if seconds else None,
        "finished": run.info.end_time / 1000 if run.info.end_time else None,
        "upstream": re.findall(r"\b[0-9a-f]{12}\b", params.get("upstream", "")),
        "params": params,
        "metrics": run.data.metrics,
        "uri": run.info.artifact_uri or "",
        "experiment_id": run.info.experiment_id,
        "told_stale": tags.get(STALE_TAG, ""),
        "slurm_id": tags.get("jigclu.slurm_job_id", ""),
        "attempt": _number(tags.get("jigclu.attempt")),
        "ranks": _number(tags.get("jigclu.ranks")),
        "estimated_hours": _number(tags.get("jigclu.estimated_hours")),
        "folder": tags.get("jigclu.folder", ""),
        "fingerprint": tags.get("jigclu.data_fingerprint", ""),
        "source": tags.get("jigclu.source_digest", ""),
    }


def _number(text: str | None) -> float | None:
    try:
        return finite(float(text or "nan"))
    except ValueError:
        return None


def _list(text: str) -> list[Any]:
    """A tag's list: JSON, or words between commas."""
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        parsed = [word.strip() for word in text.split(",") if word.strip()]
    return parsed if isinstance(parsed, list) else [parsed]


def _cell(run: Any, scale: str) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    values = _list(tags.get("jigclu.values", ""))
    return {
        **_key(tags, scale),
        "cell": tags["jigclu.cell"],
        "run_id": run.info.run_id,
        "state": tags.get("jigclu.state", "not run"),
        "message": tags.get("jigclu.message", ""),
        "verdict": tags.get(VERDICT_TAG, ""),
        "measured": tags.get("jigclu.measured", ""),
        "jobs": [word.strip() for word in tags.get("jigclu.jobs", "").split(",") if word.strip()],
        "commits": [word.strip() for word in tags.get("jigclu.commit", "").split(",") if word.strip()],
        "values": [finite(value) if isinstance(value, int | float) else None for value in values],
        "seeds": _list(tags.get("jigclu.seeds", "")),
        **{name: metrics.get(name) for name in ("value", "std", "n")},
    }


def _table(run: Any, scale: str) -> dict[str, Any]:
    return {
        **_key(run.data.tags, scale),
        "run_id": run.info.run_id,
        "digest": run.data.tags.get(DIGEST_TAG, ""),
        "claims": run.data.tags.get(CLAIMS_TAG, ""),
        "experiment_id": run.info.experiment_id,
    }


def _key(tags: dict[str, str], scale: str) -> dict[str, str]:
    return {
        "table": tags.get("jigclu.table", ""),
        "scale": tags.get("jigclu.scale", scale),
        "protocol": tags.get("jigclu.protocol", ""),
        "variant": tags.get("jigclu.variant", ""),
    }


def artifact(client: MlflowClient | None, run_id: str, uri: str, path: str) -> bytes | None:
    """An artifact's bytes; None where it is missing or the artifact store does not answer."""
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
    pairs = sorted((one.step, float(one.value)) for one in measured if finite(one.value) is not None)
    width = max(1, math.ceil(len(pairs) / points))
    groups = [pairs[start : start + width] for start in range(0, len(pairs), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
