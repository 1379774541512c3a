"""Real orchestrators on the live cluster of tests/slurm, for the tests of submission, stops and failures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.orchestrator import ROOT, TINY, environment, named, prepared_store, run, table8
from jigclu.config import parse
from jigclu.job_folder import JobFolder
from jigclu.stages import linear, pretrain
from orchestrate.jobs import planned, submissions
from orchestrate.jobs.slurm_queue import Row, queue
from orchestrate.jobs.states import State, look
from orchestrate.planning.experiments import find
from orchestrate.planning.plan import make_plan

EPOCHS = 12  # 60 steps: enough time to stop it in mid-training
SCRIPTS = Path(__file__).parents[1] / "slurm"


def live(test: Callable[..., None]) -> Callable[..., None]:
    absent = "SLURM_CONF" not in os.environ
    reason = "no live SLURM (SLURM_CONF is not set): `make test-slurm`, as root, brings one up"
    return pytest.mark.slurm(pytest.mark.skipif(absent, reason=reason)(test))


def slurm_env() -> dict[str, str]:
    return {"SLURM_CONF": os.environ["SLURM_CONF"]}


def cluster_file(folder: Path, name: str = "mine", **fields: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", "cpus_per_task": 1, "gpus_per_task": 0, **fields}))
    return path


def call(cluster: Path, *more: str, **settings: Any) -> list[str]:
    return [*table8(**{"pretrain__epochs": EPOCHS, **settings}), "--cluster", str(cluster), *more]


def answer(store: Path, cluster: Path, *more: str, **settings: Any) -> tuple[int, str]:
    done = run(store, call(cluster, *more, **settings), **slurm_env())
    return done.returncode, done.stdout + done.stderr


def orchestrate(store: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of `python -m orchestrate WORDS`."""
    command, env = [sys.executable, "-m", "orchestrate", *words], environment(store, **slurm_env())
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


def store_with_only(folder: Path, template: Path, *names: str, at: Path | None = None, **settings: Any) -> Path:
    """A store in which all jobs of the table but these have a result."""
    store = prepared_store(at or folder / "runs", template)
    values = TINY | {"pretrain.epochs": EPOCHS} | {name.replace("__", "."): value for name, value in settings.items()}
    plan = make_plan(find(["table8"]), "smoke", "official", 1, values)
    planned.write_jobs(plan, store)
    for job in plan.jobs.values():
        if job.name not in names:
            if job.stage == "pretrain":
                (job.folder(store).path / "encoder.pt").touch()  # without it the result is stale
            job.folder(store).write_result({"top1": 0.0, "loss": 0.0})
    return store


def submitted(store: Path, cluster: Path, *names: str, **settings: Any) -> list[JobFolder]:
    """These jobs, submitted to the cluster."""
    code, said = answer(store, cluster, **settings)
    assert code == 0 and f"jobs: {len(names)} submitted" in said, said
    return [named(store, name) for name in names]


def slurm_ids(store: Path, *names: str) -> list[str]:
    return [str(submissions.current_id(named(store, name))) for name in names]


def state(job: JobFolder) -> State:
    return look([job])[job.id]


def status_line(store: Path, job: JobFolder) -> str:
    """The job's line of `status`."""
    code, said = orchestrate(store, "status", job.id)
    assert code == 0, said
    return next(line for line in said.splitlines() if job.id in line)


def attempt_steps(job: JobFolder) -> list[int]:
    """The steps at which its attempts began."""
    return [attempt["step"] for attempt in job.status["attempts"]]


def until(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    """The first true value that the condition returns."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)
    return value


def until_state(job: JobFolder, *names: str, seconds: float = 240.0) -> State:
    found: list[State] = []

    def reached() -> bool:
        found.append(state(job))
        time.sleep(0.3)
        return found[-1].name in names

    try:
        until(reached, seconds)
    except AssertionError:
        raise AssertionError(f"{found[-1]}, not {names}; {job.status}") from None
    return found[-1]


def until_step(job: JobFolder, step: int) -> None:
    until(lambda: any(line["step"] >= step for line in job.metrics()) or job.status.get("state") == "failed")
    assert job.status["state"] != "failed", job.status


def in_queue(store: Path) -> dict[str, Row]:
    """The store's jobs that wait or run, by SLURM id."""
    folder = submissions.submissions_folder(store)
    return {key: row for key, row in queue().items() if folder in Path(row.script).parents and not row.ended}


def sent(store: Path) -> Counter[str]:
    """How often each job of the store waits or runs in SLURM, by SLURM's own scripts instead of the store's records."""
    count: Counter[str] = Counter()
    for slurm_id, row in in_queue(store).items():
        folders = (Path(row.script).parent / "jobs.txt").read_text().split()
        count[Path(folders[int(slurm_id.partition("_")[2] or 0)]).name] += 1
    return count


def cancel_all(store: Path) -> None:
    if ids := list(in_queue(store)):
        subprocess.run(["scancel", *ids], check=True)


def node(name: str, up: bool) -> None:
    """Cut a node's power (and let SLURM notice at once), or switch it on again."""
    subprocess.run([SCRIPTS / ("slurm-up" if up else "slurm-down"), name], check=True, capture_output=True)
    if not up:
        subprocess.run(["scontrol", "update", f"nodename={name}", "state=down", "reason=cut"], check=True)


def recomputed(job: JobFolder, store: Path) -> JobFolder:
    """The same job, run in this process without interruption."""
    folder, values = JobFolder(store / job.path.parent.name / job.id).create(), job.job
    folder.update_job(**values)
    config = {**values["config"], "runtime": {**values["config"]["runtime"], "device": "cpu"}}
    stage = {"pretrain": pretrain, "linear": linear}[values["stage"]]
    stage.run(parse(values["stage"], config), folder.path)  # type: ignore[attr-defined]
    return folder


def assert_bit_equal(job: JobFolder, folder: Path) -> None:
    """Its weights and losses are bit-equal to those of the same job, run in this process without interruption."""
    whole = recomputed(job, folder / "whole")
    weights, expected = (torch.load(folder.path / "encoder.pt", weights_only=True) for folder in (job, whole))
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)
    curves = [[(line["step"], line["loss"]) for line in folder.metrics()] for folder in (job, whole)]
    assert curves[0] == curves[1]
