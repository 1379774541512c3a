"""A store with half of a table, and the report on it: shared by the tests of the report and of the page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imsave

from jigclu.job_folder import JobFolder
from orchestrate import mirror
from orchestrate.mirror.store import connect
from reports import __main__

ROOT = Path(__file__).resolve().parents[2]
NASTY = r"100% of #1 & $x_1^2$ ~ {a\b} | <c> § · é"
FAILURE = "loss is NaN at step 310 | epoch 3 <b>"


def add_job(store: Path, job_id: str, use: dict[str, str] | None = None, state: str = "done", **more: Any) -> JobFolder:
    """A job folder as the orchestrator and a stage leave it. `more`: fields of job.json, `metrics`, `message`."""
    stage = "linear" if use else "pretrain"
    folder = JobFolder(store / stage / job_id).create()
    metrics, message = dict(more.pop("metrics", {})), more.pop("message", "")
    val_images = metrics.pop("val_images", None)
    config: dict[str, Any] = {"backbone": "resnet18", "data": {"name": "imagenette"}, "epochs": 3}
    config |= {} if use else {"image_size": 80, "method": {"name": "jigclu", "m": 2}}
    job = {"id": job_id, "stage": stage, "seed": 0, "scale": "mini", "protocol": "official", "commit": "c0ffee" * 6}
    job |= {"name": f"{stage} resnet18 imagenette {job_id} seed 0", "config": config, "upstream": [], "uses": []}
    job |= {"command": f"python orchestrate/run.py table8 --only {job_id}", "uses": [use] if use else []}
    folder.update_job(**job | more)
    folder.set_status(state, message=message)
    if state == "done":
        # As the linear stage does: the size of the validation set is a detail of the result, not one of its metrics.
        folder.write_result(metrics, seconds=90.0, device="a CPU, 2 threads", val_images=val_images)
    return folder


def use(cell: str, scale: str = "mini", protocol: str = "official", variant: str = "") -> dict[str, str]:
    place = {"scale": scale, "protocol": protocol, "variant": variant}
    return {"experiment": "table8", "cell": cell, "metric": "top1", **place}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of table8 at scale mini, two cells at smoke, a variant, and runs of somebody else in the same MLflow."""
    store = tmp_path_factory.mktemp("report") / "runs"
    for seed, top1 in enumerate((60.0, 63.0)):
        folder = add_job(
            store, f"aaaaaaaaaa0{seed}", name=f"pretrain m=2 seed {seed}", seed=seed, metrics={"loss": 3.5}
        )
        for step in range(40):
            folder.log(step, step / 10, loss=math.nan if step == 20 else 6 - step / 20)
        imsave(folder.path / "figures" / "montage.png", [[[0.1 * seed, 0.5, 0.2]] * 8] * 8)
        upstream: dict[str, Any] = {"upstream": [f"aaaaaaaaaa0{seed}"], "seed": seed}
        add_job(store, f"bbbbbbbbbb0{seed}", use("m=2"), metrics={"top1": top1}, **upstream)
    add_job(store, "bbbbbbbbbb30", use("m=3"), metrics={"top1": math.nan})
    add_job(store, "aaaaaaaaaa40", state="failed", name="pretrain m=4 seed 0", message=FAILURE)
    add_job(store, "bbbbbbbbbb40", use("m=4"), state="pending", upstream=["aaaaaaaaaa40"])
    add_job(store, "cccccccccc00", use("random", "smoke"), scale="smoke", metrics={"top1": 50.0, "val_images": 400})
    variant = use("m=2", "smoke", "paper", "linear.milestones=[0.3, 0.6] linear.epochs=3")
    add_job(store, "cccccccccc01", variant, scale="smoke", state="running")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        mirror.sync(store)
        client = connect(mirror.tracking_uri(store))
    assert client is not None
    client.create_run(client.create_experiment("somebody-else"), run_name="theirs")
    ours = client.get_experiment_by_name("jigclu-mini-tables")
    assert ours is not None
    client.create_run(ours.experiment_id, tags={"jigclu.table": "table99", "jigclu.cell": "x"})
    client.create_run(ours.experiment_id, run_name="no tags of ours")
    return store


@pytest.fixture(autouse=True)
def own_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(store: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """`python -m reports` in this process; results.json, read strictly."""
    assert __main__.main(["--store", str(store), "--out", str(out), *arguments]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return dict(json.loads((out / "results.json").read_text(), parse_constant=refuse))


def by_cell(results: dict[str, Any], scale: str = "mini", protocol: str = "official") -> dict[str, dict[str, Any]]:
    return {one["cell"]: one for one in results["cells"] if (one["scale"], one["protocol"]) == (scale, protocol)}


@pytest.fixture(scope="module")
def out(store: Path) -> Path:
    """What a report without flags wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run(store, store.parent / "out")
    return store.parent / "out"
