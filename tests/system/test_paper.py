"""`run.py all`: every table and figure of the paper, small enough for CI, through the real orchestrator."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import ROOT, TINY, jobs, prepared_store, run

from jigclu.config import METRICS
from orchestrate.planning import experiments
from orchestrate.planning.experiments import Cell
from reports import verdicts

# A pretraining is 20 steps, on a tenth of the set 2: each class has two images there, of which a probe holds out one.
# What is not among the jobs (m = 3 and 4, other augmentations) has tests of its own.
CUT: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if not key.startswith("linear.data.")},
    "pretrain.data.train_images": 200, "pretrain.batch_size": 20, "pretrain.epochs": 2,
    "finetune.image_size": 32, "finetune.resize": 36, "finetune.batch_size": 4, "finetune.epochs": 2,
    "finetune.precision": "float32", "finetune.runtime.threads": 1, "finetune.runtime.workers": 0,
    "dense.data.size": 64, "dense.data.train_images": 12, "dense.data.val_images": 4, "dense.image_size": 64,
    "dense.runtime.threads": 1, "dense.runtime.workers": 0,
    "detect.data.size": 64, "detect.data.train_images": 12, "detect.data.val_images": 4, "detect.sizes.train": [64],
    "detect.sizes.test": 64, "detect.solver.schedule": 0.16, "detect.solver.batch_size": 4, "detect.precise_bn": 1,
    "detect.detector.channels": 16, "detect.detector.fc_dim": 16, "detect.runtime.threads": 1, "detect.runtime.workers": 0,
}  # fmt: skip
# One cell for every method but MoCo's first version, every stage, both subsets, two inputs, and every table.
CELLS = [
    "Supervised", "SimCLR ImageNet-100", "MoCo v2 ImageNet-10%", "JigClu 1% Top-1", "Supervised 10% Top-1",
    "finetune JigClu CIFAR-10", "small time", "small memory", "small accuracy", "after", "JigClu 200", "x=0.3", "random",
    "JigClu AP", "JigClu AP of object cells",
]  # fmt: skip
DETECTS = importlib.util.find_spec("detectron2") is not None


def words(*more: str) -> list[str]:
    sets = [word for key, value in CUT.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["all", "--scale", "smoke", "--cluster", "local", "--jobs", "2", "--cells", *CELLS, *sets, *more]


@functools.cache
def whole_paper(template: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    store = prepared_store(template.parent / "paper", template)
    return store, run(store, words())


def cells() -> dict[tuple[str, str], Cell]:
    """(experiment, key) -> the requested cells."""
    ledger = experiments.load_all()
    found = {(name, cell.key): cell for name, experiment in ledger.items() for cell in experiment.all_cells}
    return {key: cell for key, cell in found.items() if key[1] in CELLS and (DETECTS or cell.stage != "detect")}


@pytest.mark.timeout(600)
def test_a_small_version_of_the_whole_paper_runs_to_the_end(template: Path) -> None:
    store, done = whole_paper(template)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert ("table4: detectors are left out" in done.stdout) is not DETECTS
    assert {job.job["stage"] for job in jobs(store)} == {
        "pretrain",
        "linear",
        "finetune",
        "dense",
        *(["detect"] * DETECTS),
    }
    assert all(job.done for job in jobs(store))
    for job in jobs(store):
        known = METRICS[job.job["stage"]]
        assert not known or set(job.result["metrics"]) <= set(known), job.job["name"]


def test_every_requested_cell_is_filled_with_a_number(template: Path) -> None:
    store, _ = whole_paper(template)
    filled = {
        (use["experiment"], use["cell"]): job.result["metrics"][use["metric"]]
        for job in jobs(store)
        for use in job.job["uses"]
    }
    assert filled.keys() == cells().keys()
    assert all(value >= 0 for value in filled.values())
    assert filled["table6", "small time"] > 0 and filled["table6", "small memory"] > 100


def test_cells_that_need_the_same_job_share_it(template: Path) -> None:
    store, _ = whole_paper(template)
    of_default = [job for job in jobs(store, "pretrain") if job.job["name"] == "pretrain resnet10 textures m=2 seed 0"]
    (shared,) = of_default
    assert {"table3", "table5", "table7"} <= set(shared.job["experiments"])
    (floor,) = (
        job
        for job in jobs(store, "linear")
        if {"table7", "table8", "table9"} <= set(job.job["experiments"]) and not job.job["upstream"]
    )
    assert {use["cell"] for use in floor.job["uses"]} == {"random"}


def test_two_jobs_run_at_once_and_never_three(template: Path) -> None:
    store, _ = whole_paper(template)
    spans = [(job.status["started"], job.result["finished"]) for job in jobs(store)]
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_a_second_run_of_the_paper_starts_nothing(template: Path) -> None:
    store, _ = whole_paper(template)
    done = run(store, words())
    assert done.returncode == 0 and "jobs are done already" in done.stdout, done.stdout + done.stderr


def test_the_report_shows_every_table_and_checks_every_claim(template: Path, tmp_path: Path) -> None:
    store, _ = whole_paper(template)
    command = [sys.executable, "-m", "reports", "--store", str(store), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    names = [
        name
        for name, experiment in experiments.load_all().items()
        if any((name, cell.key) in cells() for cell in experiment.all_cells)
    ]
    assert len(names) == 11 and all(experiments.load_all()[name].source in page for name in names)
    claims = json.loads((tmp_path / "out" / "results.json").read_text())["claims"]
    wanted = {(name, claim.text) for name in names for claim in experiments.load_all()[name].claims}
    assert {(claim["experiment"], claim["text"]) for claim in claims} == wanted
    assert {claim["outcome"] for claim in claims} <= set(verdicts.OUTCOMES)
