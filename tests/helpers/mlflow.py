"""Job folders for the mirror's tests, and MLflow's content after a sync."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from jigclu.files import write_json
from jigclu.job_folder import JobFolder
from orchestrate import mirror

ROOT = Path(__file__).resolve().parents[2]
SYNC = "import sys; from pathlib import Path; from orchestrate import mirror; print(mirror.sync(Path(sys.argv[1])));"
SYNC += "print('imported' if 'mlflow' in sys.modules else 'not imported')"


def use(
    cell: str, protocol: str = "official", variant: str = "", experiment: str = "table8", metric: str = "top1"
) -> dict[str, str]:
    names = {"experiment": experiment, "metric": metric, "scale": "mini"}
    return {**names, "cell": cell, "protocol": protocol, "variant": variant}


def make_job(store: Path, job_id: str, stage: str = "linear", seed: int = 0, **fields: Any) -> JobFolder:
    folder = JobFolder(store / stage / job_id).create()
    config = {"data": {"name": "imagenette", "train_images": None}, "epochs": 3, "milestones": [0.6, 0.8]}
    job = {"id": job_id, "stage": stage, "name": f"{stage} {job_id}", "config": config, "upstream": [], "seed": seed}
    job |= {"scale": "mini", "protocol": "official", "experiments": ["table8"], "uses": [], "commit": "c0ffee"}
    write_json(folder.path / "job.json", job | {"command": "jigclu run table8"} | fields)
    return folder


def log_steps(folder: JobFolder, *steps: int) -> None:
    for step in steps:
        folder.log(step, step / 10, loss=1 / (1 + step), **{"top1/lr=0.1": 50.0 + step})


def client(store: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(mirror.tracking_uri(store))


def runs(store: Path, experiment: str = "jigclu-mini") -> list[Any]:
    found = client(store).get_experiment_by_name(experiment)
    return list(client(store).search_runs([found.experiment_id])) if found else []


def run_of(store: Path, folder: JobFolder) -> Any:
    (run,) = [run for run in runs(store) if run.data.tags["jigclu.job"] == folder.id]
    return run


def points(store: Path, folder: JobFolder, name: str = "loss") -> list[tuple[int, float, int]]:
    name = f"{folder.path.parent.name}/{name}"
    history = client(store).get_metric_history(run_of(store, folder).info.run_id, name)
    return sorted((point.step, point.value, point.timestamp) for point in history)


def steps(store: Path, folder: JobFolder, name: str = "loss") -> list[int]:
    return [step for step, _, _ in points(store, folder, name)]


def cells(folder: Path, /, **tags: str) -> dict[str, Any]:
    """Cell key -> child run; fails if a key appears twice."""
    found = [run for run in runs(folder, "jigclu-mini-tables") if "jigclu.cell" in run.data.tags]
    found = [run for run in found if all(run.data.tags[f"jigclu.{key}"] == value for key, value in tags.items())]
    keys = [run.data.tags["jigclu.cell"] for run in found]
    assert len(keys) == len(set(keys)), keys
    return dict(zip(keys, found, strict=True))


def in_new_process(store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SYNC, str(store)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
