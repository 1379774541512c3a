"""Fixtures of the report's tests: a store with half of a table, and the report on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers.report import FAILURE, add_job, run, use
from matplotlib.image import imsave

from orchestrate import mirror
from orchestrate.mirror.store import connect


@pytest.fixture(autouse=True)
def own_tracking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLflow is the sqlite file of the test's own store; no data, beside which made-up results would be stale."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path / "no data"))


@pytest.fixture(scope="module")
def half_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of table8 at scale mini, two cells at smoke, a variant, and unrelated runs in the same MLflow."""
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
    add_job(store, "bbbbbbbbbb30", use("m=3"), metrics={"loss": 1.0})  # without the cell's number
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
    client.create_run(client.create_experiment("unrelated"), run_name="unrelated")
    tables = client.get_experiment_by_name("jigclu-mini-tables")
    assert tables is not None
    client.create_run(tables.experiment_id, tags={"jigclu.table": "table99", "jigclu.cell": "x"})
    client.create_run(tables.experiment_id, run_name="without the suite's tags")
    return store


@pytest.fixture(scope="module")
def out(half_store: Path) -> Path:
    """The output of a report without flags on half_store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run(half_store, half_store.parent / "out")
    return half_store.parent / "out"
