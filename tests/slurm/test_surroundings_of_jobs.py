"""Ranks and SLURM variables that are left over in the shell reach no job."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import PROBE, RANDOM, borrow, named, prepared_store, program, run, table8, whole_table

from jigclu.job_folder import JobFolder
from jigclu.training import interrupt
from orchestrate import worker
from orchestrate.jobs.surroundings import without_launchers, without_ranks
from orchestrate.slurm.script import sbatch

LEFT_OVER = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none", "ROLE_RANK": "1",
}  # fmt: skip
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_NODEID": "0", "SLURM_LOCALID": "2"}


def test_what_says_a_rank_is_left_out_and_nothing_else() -> None:
    other = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0", "SLURM_CONF": "/x", "RANKING": "1"}
    assert without_ranks(LEFT_OVER | other) == other == without_launchers(LEFT_OVER | ALLOCATION | other)


def test_a_local_job_is_alone_whatever_the_shell_says(tmp_path: Path, template: Path) -> None:
    """It would wait for other ranks that never start."""
    whole, _ = whole_table(template)
    store = prepared_store(tmp_path / "runs", template)
    borrow(whole, store, but=[RANDOM])
    done = run(store, table8(), **LEFT_OVER, **ALLOCATION)
    assert done.returncode == 0, done.stdout + done.stderr
    job = named(store, RANDOM)
    assert job.result["world"] == 1 and job.status["slurm_job_id"] is None


@pytest.mark.parametrize("more", [{}, ALLOCATION])
def test_sbatch_passes_no_ranks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]) -> None:
    program(tmp_path / "bin", "sbatch", f"env > {tmp_path}/seen; echo 12")
    (tmp_path / "x.sh").write_text("#!/bin/sh\n")
    for name, value in {**LEFT_OVER, **more, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "MINE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert sbatch(tmp_path / "x.sh") == "12"
    seen = {line.partition("=")[0] for line in (tmp_path / "seen").read_text().splitlines()}
    assert "MINE" in seen and not seen & {*LEFT_OVER, *more}


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        (ALLOCATION, 0),  # not in a job that sbatch started
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 0),
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "", "SLURM_PROCID": ""}, 0),
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "1(x1)", "SLURM_PROCID": "0"}, 0),
    ],
)
def test_the_worker_takes_its_rank_from_slurm_alone(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: int
) -> None:
    for name, value in (LEFT_OVER | {"RANK": "", "SLURM_RESTART_COUNT": ""} | variables).items():
        monkeypatch.setenv(name, value)
    assert worker.set_rank() == rank and not LEFT_OVER.keys() & os.environ.keys()


def test_ranks_meet_at_a_port_that_no_outgoing_connection_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []
    for restart in range(100):
        task = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_NTASKS_PER_NODE": "2"}
        job = {"SLURM_JOB_ID": "31", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_LOCALID": "1"}
        more = {"SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": str(restart)}
        for name, value in (LEFT_OVER | {"RANK": ""} | task | job | more).items():
            monkeypatch.setenv(name, value)
        assert worker.set_rank() == 1
        ports.append(int(os.environ["MASTER_PORT"]))
    assert min(ports) > 1024 and max(ports) < 32768 and len(set(ports)) > 90


def test_a_preempted_job_is_requeued_whatever_rank_says(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = whole_table(template)
    store = prepared_store(tmp_path / "runs", template)
    borrow(whole, store, but=[])
    job = named(store, PROBE)
    (job.path / "result.json").unlink()
    program(tmp_path / "bin", "scontrol", f"echo $* >> {tmp_path}/calls; echo JobState=RUNNING")
    variables = {**LEFT_OVER, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "31", "SLURM_NTASKS": "1"}
    variables |= {"SLURM_PROCID": "0", "SLURM_RESTART_COUNT": "", "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def preempted(*_: Any) -> None:
        raise interrupt.Interrupted("stopped at step 2 of 4, saved")

    monkeypatch.setattr("jigclu.stages.linear.run", preempted)
    handlers = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    try:
        with pytest.raises(SystemExit) as ended:
            worker.run_job(str(job.path))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        interrupt.clear()
    assert ended.value.code == 1 and "requeue 31" in (tmp_path / "calls").read_text()
    assert JobFolder(job.path).status["state"] == "running" and not (job.path / ".run1.lock").exists()
