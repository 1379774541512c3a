"""Stopped and killed orchestrators: running jobs continue or save, and the next run resumes from there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.orchestrator import PRETRAIN, borrow, freeze, jobs, named, prepared_store, run, start, table8, whole_table

from jigclu.files import locked
from jigclu.job_folder import JobFolder
from orchestrate.jobs.states import running_now, state_of
from orchestrate.jobs.submissions import submission
from orchestrate.worker import run_job

TABLE = table8()


@pytest.fixture
def uninterrupted(template: Path) -> Path:
    """A store in which the same pretraining ran without interruption."""
    return whole_table(template)[0]


@pytest.fixture
def store(uninterrupted: Path, tmp_path: Path, template: Path) -> Iterator[Path]:
    """A store in which only one pretraining is left to run: the other jobs are copied."""
    store = prepared_store(tmp_path / "runs", template)
    borrow(uninterrupted, store, but=[PRETRAIN])
    yield store
    for job in jobs(store):  # only if a test failed; its orchestrator then ends too
        if running_now(job):
            os.kill(job.status["pid"], signal.SIGKILL)


def logged(store: Path) -> int:
    """How many steps the pretraining has logged."""
    return sum(len(list(job.metrics())) for job in jobs(store) if job.job["name"] == PRETRAIN)


def wait_for(condition: Callable[[], object], running: Callable[[], bool] = lambda: True) -> None:
    """Wait until the condition holds (pytest-timeout limits it); fail if `running` is false before."""
    while not condition():
        assert running(), "ended too early"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def assert_as_if_uninterrupted(store: Path, uninterrupted: Path) -> None:
    job, reference = named(store, PRETRAIN), named(uninterrupted, PRETRAIN)
    assert job.id == reference.id and job.done
    weights, expected = (torch.load(folder.path / "encoder.pt", weights_only=True) for folder in (job, reference))
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    curves = [[(line["step"], line["loss"]) for line in folder.metrics()] for folder in (job, reference)]
    assert curves[0] == curves[1] and len(curves[0]) == 20


def start_until_it_trains(store: Path, words: list[str] = TABLE) -> subprocess.Popen[str]:
    """A new orchestrator, after its pretraining has logged two more steps."""
    before, orchestrator = logged(store), start(store, words)
    wait_for(lambda: logged(store) > before + 1, lambda: orchestrator.poll() is None)
    return orchestrator


def assert_stopped(orchestrator: subprocess.Popen[str], job: JobFolder) -> None:
    """It ended as after Ctrl-C, and so did its processes."""
    output = orchestrator.communicate()[0]
    assert orchestrator.returncode == 130, output
    assert output.splitlines()[-1] == "run.py: stopped; the same command resumes"
    assert not running_now(job) and not alive(submission(job)["pid"]) and not alive(job.status["pid"])


def test_stopped_orchestrators_stop_their_jobs_and_the_next_run_ends_bit_equal(
    store: Path, uninterrupted: Path
) -> None:
    for attempt, ctrl_c in ((1, True), (2, False)):
        orchestrator = start_until_it_trains(store)
        if ctrl_c:  # a terminal sends it to the whole process group
            os.killpg(orchestrator.pid, signal.SIGINT)
        else:  # `kill` to the orchestrator alone
            orchestrator.send_signal(signal.SIGTERM)
        job = named(store, PRETRAIN)
        assert_stopped(orchestrator, job)
        assert (job.status["state"], len(job.status["attempts"])) == ("interrupted", attempt)
        assert re.fullmatch(r"stopped at step \d+ of 20", job.status["message"])
    done = run(store, TABLE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f" resume   {job.id}" in done.stdout and f" start    {job.id}" not in done.stdout
    assert (job.status["state"], len(job.status["attempts"])) == ("done", 3)
    assert_as_if_uninterrupted(store, uninterrupted)


def test_a_second_ctrl_c_kills_a_job_that_hangs_and_the_next_run_ends_bit_equal(
    store: Path, uninterrupted: Path
) -> None:
    orchestrator = start_until_it_trains(store, table8(pretrain__runtime__checkpoint_minutes=1e-9))
    job = named(store, PRETRAIN)
    freeze(job.status["pid"])  # it now hangs
    os.killpg(orchestrator.pid, signal.SIGINT)
    assert orchestrator.stdout
    wait_for(lambda: "Ctrl-C again" in orchestrator.stdout.readline(), lambda: orchestrator.poll() is None)
    os.killpg(orchestrator.pid, signal.SIGINT)
    assert_stopped(orchestrator, job)
    assert state_of(job) == "interrupted"
    done = run(store, TABLE)
    assert done.returncode == 0 and f" resume   {job.id}" in done.stdout, done.stdout + done.stderr
    assert_as_if_uninterrupted(store, uninterrupted)


def test_a_job_outlives_its_killed_orchestrator_and_the_next_run_waits_for_it(store: Path, uninterrupted: Path) -> None:
    background = run(store, [*TABLE, "--no-wait"])
    assert background.returncode == 0, background.stderr
    found = re.fullmatch(r"running in the background as process (\d+); its log: (.+)\n", background.stdout)
    assert found, background.stdout
    orchestrator = int(found[1])
    wait_for(lambda: logged(store), lambda: alive(orchestrator))
    os.kill(orchestrator, signal.SIGKILL)
    wait_for(lambda: not alive(orchestrator))
    job = named(store, PRETRAIN)
    assert running_now(job) and alive(job.status["pid"])
    freeze(job.status["pid"])  # so that it is still running when the next run looks
    following = start(store, TABLE)
    assert following.stdout
    wait_for(lambda: f" waits    {job.id}" in following.stdout.readline(), lambda: following.poll() is None)
    os.kill(job.status["pid"], signal.SIGCONT)
    rest = following.communicate()[0]
    assert following.returncode == 0 and " start " not in rest, rest
    assert f" start    {job.id}" in Path(found[2]).read_text()
    assert (job.status["state"], len(job.status["attempts"])) == ("done", 1)
    assert_as_if_uninterrupted(store, uninterrupted)


def test_a_killed_job_is_reported_as_interrupted(store: Path) -> None:
    orchestrator = start_until_it_trains(store)
    job = named(store, PRETRAIN)
    os.kill(job.status["pid"], signal.SIGKILL)
    output = orchestrator.communicate()[0]
    assert orchestrator.returncode == 1, output
    assert f"interrupted {job.id}  {PRETRAIN}: the process ended without a result" in output
    assert state_of(job) == job.status["state"] == "interrupted"


def test_the_worker_returns_at_once_from_a_finished_job(uninterrupted: Path) -> None:
    job = named(uninterrupted, PRETRAIN)
    before = {path: path.lstat().st_mtime_ns for path in job.path.rglob("*")}
    run_job(str(job.path))
    assert {path: path.lstat().st_mtime_ns for path in job.path.rglob("*")} == before


def test_the_worker_leaves_a_job_alone_that_runs_elsewhere(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobFolder(tmp_path / "pretrain" / named(uninterrupted, PRETRAIN).id).create()
    shutil.copy(named(uninterrupted, PRETRAIN).path / "job.json", job.path)
    with locked(job.path / ".run.lock"):
        assert state_of(job) == "running"
        run_job(str(job.path))
    assert "running elsewhere" in capsys.readouterr().out
    assert job.status == {} and not job.done and state_of(job) == "new"
