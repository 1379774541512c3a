"""Ends that nobody watches: `kill`, a closed terminal, a job's folder that somebody deletes during the run."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.cluster import until, until_step
from helpers.orchestrator import (
    PRETRAIN,
    RANDOM,
    ROOT,
    environment,
    freeze,
    jobs,
    named,
    prepared_store,
    start,
    table8,
)

from jigclu.job_folder import JobFolder
from orchestrate.jobs.states import running_now, state_of
from orchestrate.jobs.submissions import submission

WORDS = [*table8(pretrain__epochs=400), "--cells", "m=2"]
IMPATIENT = "import sys; from orchestrate import local, run; local.STOP_SECONDS = 1.0; sys.exit(run.main(sys.argv[1:]))"


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def store(tmp_path: Path, template: Path) -> Iterator[Path]:
    store = prepared_store(tmp_path / "runs", template)
    yield store
    for job in jobs(store):  # only if a test failed
        if running_now(job):
            os.kill(job.status["pid"], signal.SIGKILL)


def only(store: Path, name: str) -> JobFolder:
    until(lambda: any(job.job.get("name") == name for job in jobs(store)))
    return named(store, name)


def worker(job: JobFolder) -> int:
    """The process of a job that has just been started: the child of submitit's controller."""
    until(lambda: "pid" in submission(job))
    pid = submission(job)["pid"]

    def found() -> int | None:
        for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"submitit.core._submit" in Path(f"/proc/{word}/cmdline").read_bytes():
                return int(word)
        return None

    return int(until(found))


def test_a_stop_by_a_program_kills_a_job_that_does_not_stop(store: Path) -> None:
    orchestrator = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *WORDS],
        cwd=ROOT,
        env=environment(store),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    job = only(store, PRETRAIN)
    pid = worker(job)
    freeze(pid)  # it hangs at its start
    orchestrator.send_signal(signal.SIGTERM)
    output = orchestrator.communicate()[0]
    assert orchestrator.returncode == 130, output
    assert "stopping: 1 running job saves at the next step (at most 1 s)" in output
    assert f"killed   {job.id}  {PRETRAIN}: it did not stop in 1 s" in output
    until(lambda: not alive(pid) and not alive(submission(job)["pid"]))
    assert state_of(job) in ("new", "interrupted")


def test_more_signals_of_a_program_do_not_kill_a_job_that_saves(store: Path) -> None:
    """A logout sends SIGTERM and SIGHUP to everything."""
    orchestrator = start(store, WORDS)
    job = only(store, PRETRAIN)
    until_step(job, 3)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        orchestrator.send_signal(number)
        time.sleep(0.02)
    output = orchestrator.communicate()[0]
    assert orchestrator.returncode == 130, output
    assert job.status["state"] == "interrupted" and job.status["message"].startswith("stopped at step ")
    assert list((job.path / "checkpoint").glob("step-*.pt"))


def test_a_store_that_is_moved_during_a_run_is_named_and_not_made_again(store: Path) -> None:
    orchestrator = start(store, WORDS)
    until_step(only(store, PRETRAIN), 1)
    store.rename(store.with_name("elsewhere"))
    output = orchestrator.communicate()[0]
    assert orchestrator.returncode == 2 and "Traceback" not in output, output
    assert output.endswith(f"the store {store} was moved or deleted while its jobs were running\n"), output
    assert not store.exists()


def test_a_closed_terminal_stops_the_run_its_job_saves_and_the_next_run_resumes(store: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:  # a shell would be the leader of the session; the kernel sends SIGHUP to the foreground
        os.chdir(store.parent)
        os.execve(
            sys.executable,
            [sys.executable, str(ROOT / "orchestrate" / "run.py"), *WORDS],
            environment(store),
        )
    job = only(store, PRETRAIN)
    until_step(job, 3)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert job.status["state"] == "interrupted" and re.match(r"stopped at step \d+ of 2000", job.status["message"])
    assert not running_now(job) and not alive(submission(job)["pid"])
    (step,) = {int(path.stem.removeprefix("step-")) for path in (job.path / "checkpoint").glob("step-*.pt")}
    orchestrator = start(store, WORDS)
    until_step(job, step + 2)
    orchestrator.send_signal(signal.SIGTERM)
    output = orchestrator.communicate()[0]
    assert f" resume   {job.id}" in output and [attempt["step"] for attempt in job.status["attempts"]] == [0, step]


def test_a_folder_that_is_deleted_during_the_run_fails_that_job_only(store: Path) -> None:
    orchestrator = start(store, [*WORDS, "random"])
    running, waiting = only(store, PRETRAIN), only(store, RANDOM)
    until_step(running, 1)
    shutil.rmtree(waiting.path)
    assert orchestrator.stdout
    line = ""
    while " failed " not in line:
        line = orchestrator.stdout.readline()
        assert line, "it ended without a word"
    said = f"{waiting.id}  {RANDOM}: its folder {waiting.path} was deleted; the same command starts anew"
    assert said in line and running_now(running) and orchestrator.poll() is None, line
    orchestrator.send_signal(signal.SIGTERM)
    output = orchestrator.communicate()[0]
    assert orchestrator.returncode == 130 and "Traceback" not in output, output
