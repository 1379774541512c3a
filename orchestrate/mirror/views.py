"""How MLflow lays out the tables of runs: one shared view for jobs, one for cells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
from orchestrate.mirror.address import server

# How MLflow's own table of runs is laid out when it is opened by `view_url`: a view that was shared, in MLflow's words.
VIEW = "jigclu"


_JOBS = (
    *(
        "tags.`jigclu.label`",
        "tags.`jigclu.stage`",
        "metrics.`result.top1`",
        "tags.`jigclu.state`",
        "tags.`jigclu.stale`",
    ),
    *("tags.`jigclu.attempt`", "tags.`jigclu.seed`", "metrics.`loss`", "metrics.`images_per_second`"),
    *("tags.`jigclu.experiments`", "tags.`jigclu.device`", "tags.`jigclu.slurm_job_id`"),
)


_TABLES = (
    *(
        "tags.`jigclu.row`",
        "tags.`jigclu.column`",
        "metrics.`value`",
        "metrics.`printed`",
        "metrics.`difference`",
        "tags.`jigclu.verdict`",
        "tags.`jigclu.state`",
    ),
    *("tags.`jigclu.claims`", "metrics.`std`", "metrics.`n`", "tags.`jigclu.protocol`", "tags.`jigclu.variant`"),
)


def views(experiment: str) -> dict[str, str]:
    """The experiment's tags that hold its view, and that it is about training: MLflow would show it as one about prompts."""
    tables = experiment.endswith("-tables")
    columns = _TABLES if tables else _JOBS
    state = {"orderByKey": "attributes.start_time", "orderByAsc": tables, "startTime": "ALL"}  # cells as in the ledger
    state |= {"selectedColumns": columns, "columnOrder": columns}
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps(state), "mlflow.experimentKind": "custom_model_development"}


def apply_view(client: MlflowClient, found: Experiment) -> None:
    """Give the experiment its view where it has none, or another."""
    for tag, value in views(found.name).items():
        if found.tags.get(tag) != value:
            client.set_experiment_tag(found.experiment_id, tag, value)


def view_url(uri: str, experiment_id: str) -> str:
    """Where the view is seen: on the tracking server, or where `make mlflow` serves the store."""
    return f"{server(uri)}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"
