"""Job folders for the report's tests, and how they run the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jigclu.job_folder import JobFolder
from reports import __main__

ROOT = Path(__file__).resolve().parents[2]
NASTY = r"100% of #1 & $x_1^2$ ~ {a\b} | <c> § · é"
FAILURE = "loss is NaN at step 310 | epoch 3 <b>"


def add_job(store: Path, job_id: str, use: dict[str, str] | None = None, state: str = "done", **more: Any) -> JobFolder:
    """A job folder as written by the orchestrator and a stage. `more`: fields of job.json, `metrics`, `message`."""
    stage = "linear" if use else "pretrain"
    folder = JobFolder(store / stage / job_id).create()
    metrics, message = dict(more.pop("metrics", {})), more.pop("message", "")
    val_images = metrics.pop("val_images", None)
    config: dict[str, Any] = {"backbone": "resnet18", "data": {"name": "imagenette"}, "epochs": 3}
    config |= {} if use else {"image_size": 80, "method": {"name": "jigclu", "m": 2}}
    job = {"id": job_id, "stage": stage, "seed": 0, "scale": "mini", "protocol": "official", "commit": "c0ffee" * 6}
    job |= {"name": f"{stage} resnet18 imagenette {job_id} seed 0", "config": config, "upstream": [], "uses": []}
    job |= {"command": f"jigclu run table8 --only {job_id}", "uses": [use] if use else []}
    folder.update_job(**job | more)
    folder.set_status(state, message=message)
    if state == "done":
        if stage == "pretrain":
            (folder.path / "encoder.pt").write_bytes(b"weights")
        # As in the linear stage, the size of the validation set is a detail of the result, not one of its metrics.
        folder.write_result(metrics, seconds=90.0, device="a CPU, 2 threads", val_images=val_images)
    return folder


def use(cell: str, scale: str = "mini", protocol: str = "official", variant: str = "") -> dict[str, str]:
    """An entry of job.json's `uses`: the cell of Table 8 that the job fills."""
    names = {"experiment": "table8", "metric": "top1", "scale": scale}
    return {**names, "cell": cell, "protocol": protocol, "variant": variant}


def run(store: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """`python -m reports` in this process; results.json, read strictly."""
    store.mkdir(exist_ok=True)
    assert __main__.main(["--store", str(store), "--out", str(out), *arguments]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return dict(json.loads((out / "results.json").read_text(), parse_constant=refuse))


def by_cell(results: dict[str, Any], scale: str = "mini", protocol: str = "official") -> dict[str, dict[str, Any]]:
    """Cell key -> its entry of results.json."""
    cells = [cell for cell in results["cells"] if (cell["scale"], cell["protocol"]) == (scale, protocol)]
    return {cell["cell"]: cell for cell in cells}
