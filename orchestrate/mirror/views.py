"""The columns of MLflow's tables of runs: one shared view for jobs, one for cells.

Two experiment tags of MLflow's web interface are used here that its documentation does not promise:
`mlflow.sharedViewState.<name>`, the JSON of a shared view, opened by `viewStateShareKey=<name>` in the URL; and
`mlflow.experimentKind`, without which MLflow may show the experiment as one about prompts. An MLflow that ignores them
shows its own columns; nothing else depends on them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from orchestrate.mirror.address import server
from orchestrate.mirror.tags import CLAIMS, ORDER, STALE, VERDICT, CellRecord, JobRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

VIEW = "jigclu"


def _tags(*keys: str) -> tuple[str, ...]:
    return tuple(f"tags.`{key}`" for key in keys)


def _metrics(*names: str) -> tuple[str, ...]:
    return tuple(f"metrics.`{name}`" for name in names)


_JOBS = (
    "attributes.`Duration`",
    *_tags(JobRecord.key("label"), JobRecord.key("stage")),
    *_tags(JobRecord.key("result"), JobRecord.key("state"), STALE, JobRecord.key("attempt"), JobRecord.key("seed")),
    *_metrics("pretrain/loss", "pretrain/images_per_second"),
    *_tags(
        JobRecord.key("experiments"), JobRecord.key("device"), JobRecord.key("slurm_job_id"), JobRecord.key("encoder")
    ),
)
_CELLS = (
    *_tags(CellRecord.key("row"), CellRecord.key("column")),
    *_metrics("value", "printed", "difference"),
    *_tags(VERDICT, CellRecord.key("state"), CLAIMS),
    *_metrics("std", "n"),
    *_tags(CellRecord.key("protocol"), CellRecord.key("variant")),
)


def views(experiment: str) -> dict[str, str]:
    """The experiment's tags that hold its view and its kind."""
    tables = experiment.endswith("-tables")
    columns = _CELLS if tables else _JOBS
    # MLflow folds child runs only if it sorts by time, and a shared view cannot unfold them. Sorted by a tag, a table and
    # its cells are rows of one list.
    order = f"tags.`{ORDER}`" if tables else "attributes.start_time"
    state = {"orderByKey": order, "orderByAsc": tables, "startTime": "ALL"}
    state |= {"selectedColumns": columns, "columnOrder": columns}
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps(state), "mlflow.experimentKind": "custom_model_development"}


def apply_view(client: MlflowClient, experiment: Experiment) -> None:
    """Set the experiment's view if it has none or a different one."""
    for tag, value in views(experiment.name).items():
        if experiment.tags.get(tag) != value:
            client.set_experiment_tag(experiment.experiment_id, tag, value)


def view_url(uri: str, experiment_id: str) -> str:
    """The view's URL: on the tracking server, or where `jigclu mlflow` serves the store."""
    return view_link(server(uri), experiment_id)


def view_link(page: str, experiment_id: str) -> str:
    """The view's URL on the server at `page`. `workflowType` chooses MLflow's side bar for training, not the one for prompts."""
    return f"{page}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
