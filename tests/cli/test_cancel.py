"""`cancel` on local runs: its jobs stop or do not start, those of other experiments continue, the orchestrator ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.cluster import until, until_step
from helpers.orchestrator import PRETRAIN, RANDOM, ROOT, environment, jobs, named, prepared_store, run, table8

from orchestrate.jobs.states import running_now, state_of

LONG = {"pretrain__epochs": 400}


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def store(tmp_path: Path, template: Path) -> Iterator[Path]:
    store = prepared_store(tmp_path / "runs", template)
    yield store
    for record in (store / ".orchestrators").glob("*.json"):  # only if a test failed
        os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
    for job in jobs(store):
        if running_now(job):
            os.kill(job.status["pid"], signal.SIGKILL)


def detached(store: Path, words: list[str]) -> int:
    """The process id of an orchestrator in the background, once its pretraining trains."""
    said = run(store, [*words, "--no-wait"])
    found = re.match(r"running in the background as process (\d+)", said.stdout)
    assert found, said.stdout + said.stderr
    until(lambda: any(job.job["name"] == PRETRAIN for job in jobs(store)))
    until_step(named(store, PRETRAIN), 2)
    return int(found[1])


def cancel(store: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "orchestrate", "cancel", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(store), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout + done.stderr


def test_cancel_table8_cancels_all_of_it_and_its_orchestrator_ends(store: Path) -> None:
    orchestrator = detached(store, table8(**LONG))
    code, said = cancel(store, "table8")
    assert code == 0 and "cancelled: 1 running job (saved at the next step) and 6 waiting jobs\n" in said, said
    assert f"process {orchestrator}, which ran them, ends as soon as they have saved" in said
    until(lambda: not alive(orchestrator), 60)
    states = {job.job["name"]: state_of(job) for job in jobs(store)}
    assert states.pop(PRETRAIN) == "interrupted" and set(states.values()) == {"cancelled"}, states
    log = (store / "orchestrator.log").read_text()
    assert log.count(" start    ") == 1 and "cancelled: 7 of 7 jobs" in log, log
    assert not list((store / ".orchestrators").glob("*"))
    code, said = cancel(store, "table8")
    assert code == 0 and "nothing to cancel" in said


def test_cancel_of_one_experiment_or_job_leaves_the_others_alone(store: Path) -> None:
    words = table8(**LONG)
    orchestrator = detached(store, [words[0], "table9", *words[1:], "--cells", "m=2", "location"])
    code, said = cancel(store, "table9")
    assert code == 0 and "cancelled: 2 waiting jobs\n" in said, said
    assert (
        f"process {orchestrator}, which ran them, continues with its 2 other jobs; `kill {orchestrator}` stops" in said
    )
    assert running_now(named(store, PRETRAIN)) and alive(orchestrator)
    code, said = cancel(store, named(store, PRETRAIN).id, "--yes")
    assert code == 0 and "1 running job (saved at the next step) and 1 waiting job\n" in said, said
    until(lambda: not alive(orchestrator), 60)
    states = {job.job["name"]: state_of(job) for job in jobs(store)}
    assert states.pop(PRETRAIN) == "interrupted" and set(states.values()) == {"cancelled"} and len(states) == 3, states


def test_a_cancelled_job_runs_after_all_with_the_same_command(store: Path) -> None:
    orchestrator = detached(store, [*table8(**LONG), "--cells", "m=2", "random"])
    assert cancel(store, "all")[0] == 0
    until(lambda: not alive(orchestrator), 60)
    job = named(store, RANDOM)
    assert state_of(job) == "cancelled"
    done = run(store, [*table8(**LONG), "--cells", "random"])
    assert done.returncode == 0 and f" start    {job.id}" in done.stdout, done.stdout + done.stderr
    assert state_of(job) == "done"
