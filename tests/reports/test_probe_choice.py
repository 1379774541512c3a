"""How a chosen learning rate reaches the page and `*-rates.csv`: result.json -> MLflow's points -> a job's record."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from helpers.report import add_job, run, use

from jigclu.job_folder import JobFolder
from orchestrate.mirror.job_content import job_run_spec
from reports import export
from reports.page.page import highlights
from reports.records import Job

BY_LR = {
    "0.03": {"top1": 61.0, "best_top1": 62.0, "held_out_top1": 58.0},
    "0.3": {"top1": 63.0, "best_top1": 63.5, "held_out_top1": 60.0},
    "3": {"top1": 40.0, "best_top1": 40.5, "held_out_top1": 39.0},
}


def probe(store: Path, job_id: str, chosen: bool) -> JobFolder:
    """A finished probe: of 0.03 by its config, of 0.3 by its choice."""
    folder = add_job(store, job_id, use("m=2"), metrics={"top1": 63.0 if chosen else 61.0, "val_images": 500})
    by_lr = {
        rate: {k: v for k, v in numbers.items() if chosen or k != "held_out_top1"} for rate, numbers in BY_LR.items()
    }
    config = {"lr": 0.03, "epochs": 3, **({"selection": "held_out", "standardize": True} if chosen else {})}
    folder.update_job(config={**folder.job["config"], **config})
    result = folder.result
    details = {name: result[name] for name in ("seconds", "device", "val_images")}
    folder.write_result(result["metrics"], by_lr=by_lr, lr=0.3 if chosen else 0.03, **details)
    return folder


@pytest.mark.parametrize("chosen", [True, False])
def test_the_page_says_how_the_rate_was_chosen(tmp_path: Path, chosen: bool) -> None:
    spec = job_run_spec(probe(tmp_path, "aaaaaaaaaaaa", chosen).path)
    metrics = {name.removeprefix("linear/"): value for name, value, _, _ in spec.points}
    job = Job(job="aaaaaaaaaaaa", name=spec.name, stage="linear", state="done", params=spec.params, metrics=metrics)
    assert export.by_rate(job) == {"0.03": 61.0, "0.3": 63.0, "3": 40.0}
    text = highlights(job)
    if chosen:
        assert text.endswith("; rate chosen on a held-out tenth of train: 0.3") and ", lr " not in text
        assert "standardize true" in text and export.by_rate(job, "held_out_top1") == {
            "0.03": 58.0,
            "0.3": 60.0,
            "3": 39.0,
        }
        del job.metrics["result.top1.lr3"]
        assert highlights(job).endswith(": 0.3, the highest tried: a better one may lie outside")
    else:
        assert "held-out" not in text and ", lr 0.03" in text and export.by_rate(job, "held_out_top1") == {}


def test_the_sweep_names_the_chosen_rate(tmp_path: Path, store: Path) -> None:
    probe(store, "aaaaaaaaaaaa", chosen=True)
    run(store, tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table8-mini-official-rates.csv").read_text())))
    assert [(row["lr"], row["reported"], row["top1"], row["held_out_top1"]) for row in rows] == [
        ("0.03", "False", "61.0", "58.0"),
        ("0.3", "True", "63.0", "60.0"),
        ("3", "False", "40.0", "39.0"),
    ]
    assert "rate chosen on a held-out tenth of train: 0.3" in (tmp_path / "out" / "index.html").read_text()
