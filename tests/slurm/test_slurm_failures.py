"""Failures on a live SLURM cluster are reported in one clear line, and nothing that was saved is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.cluster import (
    answer,
    assert_bit_equal,
    attempt_steps,
    call,
    cluster_file,
    in_queue,
    live,
    node,
    orchestrate,
    slurm_env,
    state,
    status_line,
    store_with_only,
    submitted,
    until,
    until_state,
    until_step,
)
from helpers.orchestrator import PRETRAIN, PROBE, freeze, named, refused

from jigclu.job_folder import JobFolder
from orchestrate.jobs import submissions

CLUSTER = Path(os.environ.get("SLURM_TEST_DIR", "/tmp/slurm-test"))


@live
def test_out_of_memory_is_reported_cancels_dependents_and_retry_submits_both_again(
    tmp_path: Path, template: Path
) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN, PROBE)
    small = cluster_file(tmp_path, "small", stages={"pretrain": {"mem_gb": 0.2}})
    job, probe = submitted(store, small, PRETRAIN, PROBE)
    assert until_state(job, "failed", "done").name == "failed"
    assert "out of memory: raise mem_gb in the cluster file (SLURM:" in status_line(store, job)
    assert until_state(probe, "cancelled").note == "upstream did not finish"
    code, said = orchestrate(store, "why", job.id)
    assert code == 0 and "state:       failed  out of memory" in said and "sacct: " not in said, said
    code, said = orchestrate(store, "retry", "table8", "--cluster", str(cluster_file(tmp_path)))
    assert code == 0 and "jobs: 2 submitted" in said, said
    assert until_state(probe, "done", "failed", "cancelled").name == "done"
    assert job.done and status_line(store, job).startswith("done")


@live
def test_a_job_killed_by_hand_is_reported_and_resumes_from_its_checkpoint(tmp_path: Path, template: Path) -> None:
    settings = {"pretrain__epochs": 12, "pretrain__runtime__checkpoint_minutes": 0.01}
    store, cluster = store_with_only(tmp_path, template, PRETRAIN, **settings), cluster_file(tmp_path)
    (job,) = submitted(store, cluster, PRETRAIN, **settings)
    until(lambda: list((job.path / "checkpoint").glob("step-*.pt")))
    until_step(job, 10)
    for process in processes(job):
        os.kill(process, signal.SIGKILL)
    assert until_state(job, "failed", "done").name == "failed"
    assert "died without an error message: killed by hand, or out of memory (SLURM: FAILED on node" in status_line(
        store, job
    )
    code, said = answer(store, cluster, "--wait", **settings)
    assert code == 0 and "jobs: 1 submitted" in said, said
    assert attempt_steps(job)[1] > 0
    assert_bit_equal(job, tmp_path)


def processes(job: JobFolder) -> list[int]:
    """Ids of the job's Python processes, on all nodes (they are namespaces of this machine)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"python") and str(job.path / "logs").encode() in words:
            found.append(int(path.parent.name))
    return found


@live
def test_a_probe_submitted_again_waits_for_the_training_that_still_runs(tmp_path: Path, template: Path) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN, PROBE, pretrain__epochs=30)
    job, probe = submitted(store, cluster_file(tmp_path), PRETRAIN, PROBE, pretrain__epochs=30)
    until_step(job, 1)
    code, said = orchestrate(store, "cancel", str(submissions.current_id(probe)))
    assert code == 0 and until_state(probe, "cancelled") and state(job).name == "running", said
    code, said = orchestrate(store, "retry", probe.id)
    assert code == 0 and "jobs: 1 submitted, 1 in the queue already" in said, said
    assert until_state(probe, "done", "failed", "cancelled").name == "done"


@live
def test_a_job_is_queued_while_its_nodes_are_down_for_maintenance(tmp_path: Path, template: Path) -> None:
    """sbatch --test-only rejects such a job, sbatch accepts it."""
    store = store_with_only(tmp_path, template, PRETRAIN)
    drain = ["scontrol", "update", "nodename=node[1-3]"]
    subprocess.run([*drain, "state=drain", "reason=maintenance"], check=True)
    try:
        (job,) = submitted(store, cluster_file(tmp_path), PRETRAIN)
        assert state(job).name == "pending"
    finally:
        subprocess.run([*drain, "state=resume"], check=True)
    assert until_state(job, "done", "failed").name == "done"


@live
def test_status_shows_a_jobs_own_error_and_logs_shows_the_traceback(tmp_path: Path, template: Path) -> None:
    store, cluster = store_with_only(tmp_path, template, PROBE), cluster_file(tmp_path)
    encoder = named(store, PRETRAIN)
    (probe,) = submitted(store, cluster, PROBE)  # its pretraining counts as done, but its encoder is empty
    assert until_state(probe, "failed", "done").name == "failed"
    line = status_line(store, probe)
    assert f"{encoder.id}/encoder.pt has no digest beside it: it is incomplete; pretrain it again" in line
    code, said = orchestrate(store, "logs", probe.id[:6])
    assert code == 0 and "Traceback" in said and "_0_log.out <==" in said, said


@live
def test_logs_shows_why_a_clusters_setup_line_failed(tmp_path: Path, template: Path) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN)
    cluster = cluster_file(tmp_path, setup=["module load nonesuch", "test -d /nowhere || exit 9"])
    (job,) = submitted(store, cluster, PRETRAIN)
    assert until_state(job, "failed", "done").name == "failed"
    assert "exit code 9:0" in status_line(store, job)
    code, said = orchestrate(store, "logs", job.id)
    assert code == 0 and "module: command not found" in said, said


@live
def test_a_full_store_is_reported_and_the_last_checkpoint_survives(tmp_path: Path, template: Path) -> None:
    """A separate file system that fills up to the last byte in mid-training."""
    if not os.path.ismount(CLUSTER / "small"):
        pytest.skip("no root: the live SLURM has no file system of its own")
    settings = {"pretrain__epochs": 40, "pretrain__runtime__checkpoint_minutes": 0.02}
    at = CLUSTER / "small" / "runs"
    subprocess.run(["rm", "-rf", at], check=True)
    store = store_with_only(tmp_path, template, PRETRAIN, at=at, **settings)
    ballast = CLUSTER / "small" / "ballast"
    try:
        (job,) = submitted(store, cluster_file(tmp_path), PRETRAIN, **settings)
        until(lambda: list((job.path / "checkpoint").glob("step-*.pt")))
        fill(ballast)
        found = until_state(job, "failed", "done")
        assert found.name == "failed" and ("its store could not be written" in found.note or "is full" in found.note), (
            found
        )
        ballast.unlink()
        code, said = orchestrate(store, "retry")
        assert code == 0 and "jobs: 1 submitted" in said, said
        assert until_state(job, "done", "failed").name == "done"
        assert attempt_steps(job)[-1] > 0
        assert_bit_equal(job, tmp_path)
    finally:
        ballast.unlink(missing_ok=True)
        subprocess.run(["rm", "-rf", at], check=True)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        size = 1 << 24
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


@live
def test_a_store_that_a_node_cannot_write_is_reported(tmp_path: Path, template: Path) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN)
    with read_only_on("node2", store):
        (job,) = submitted(store, cluster_file(tmp_path, options={"nodelist": "node2"}), PRETRAIN)
        assert until_state(job, "failed", "done", "lost").name == "failed"
        assert "SLURM could not open its log on node2: is the store writable from there?" in status_line(store, job)
    code, said = orchestrate(store, "retry", "--cluster", str(cluster_file(tmp_path)))
    assert code == 0 and until_state(job, "done", "failed").name == "done", said


@contextmanager
def read_only_on(name: str, path: Path) -> Iterator[None]:
    """Make the path read-only in that node's own mount namespace."""
    shell = int((CLUSTER / "run" / f"{name}.pid").read_text())
    try:
        inner = int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])
    except (OSError, IndexError):
        pytest.skip("no root: the live SLURM has no namespaces")
    inside = ["nsenter", "--target", str(inner), "--mount"]
    subprocess.run([*inside, "mount", "--bind", path, path], check=True)
    subprocess.run([*inside, "mount", "-o", "remount,ro,bind", path], check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "umount", path], check=True)


@live
def test_a_job_restarts_only_as_often_as_the_cluster_file_allows(tmp_path: Path, template: Path) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN, pretrain__epochs=40)
    (job,) = submitted(store, cluster_file(tmp_path, max_requeues=1), PRETRAIN, pretrain__epochs=40)
    for _ in range(2):
        steps = len(job.status.get("attempts", []))
        until(lambda steps=steps: len(job.status.get("attempts", [])) > steps and job.status.get("steps"))
        until_step(job, max((line["step"] for line in job.metrics()), default=0) + 1)
        subprocess.run(["scancel", "--signal=USR2", str(submissions.current_id(job))], check=True)
        until(lambda: state(job).name != "running")
    assert until_state(job, "interrupted", "done").name == "interrupted"
    line = status_line(store, job)
    assert "stopped at step" in line and "not restarted: max_requeues of the cluster file is 1" in line
    code, said = orchestrate(store, "retry")
    assert code == 0 and until_state(job, "done", "failed").name == "done", said


@live
@pytest.mark.timeout(600)
def test_a_job_without_progress_in_two_attempts_stops_and_says_so(tmp_path: Path, template: Path) -> None:
    """Its node is lost twice before it has saved anything; the third attempt gives up."""
    store = store_with_only(tmp_path, template, PRETRAIN, pretrain__epochs=200)
    (job,) = submitted(store, cluster_file(tmp_path), PRETRAIN, pretrain__epochs=200)
    for attempt in (1, 2):
        until(lambda attempt=attempt: len(job.status.get("attempts", [])) == attempt)
        (row,) = until(lambda: list(in_queue(store).values()))
        node(row.nodes, up=False)
        node(row.nodes, up=True)
    assert until_state(job, "failed", "done").name == "failed"
    assert "no progress in two attempts: both began at step 0 and saved no later one" in status_line(store, job)
    assert not in_queue(store) and len(job.status["attempts"]) == 2


@live
def test_status_works_while_the_controller_does_not_answer(tmp_path: Path, template: Path) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN, PROBE, pretrain__epochs=60)
    job, probe = submitted(store, cluster_file(tmp_path), PRETRAIN, PROBE, pretrain__epochs=60)
    until_step(job, 1)
    controller = int((CLUSTER / "run" / "slurmctld.pid").read_text())
    freeze(controller)
    try:
        code, said = orchestrate(store, "status", "table8")
        assert (
            code == 0 and "SLURM does not answer (" in said and "the states come from the job folders alone" in said
        ), said
        assert f"running     {job.id}" in said and f"pending     {probe.id}" in said, said
        words = call(cluster_file(tmp_path), pretrain__epochs=60)
        refused(store, words, "SLURM does not answer, so nothing is submitted: ", **slurm_env())
    finally:
        os.kill(controller, signal.SIGCONT)
    assert until_state(probe, "done", "failed", "cancelled").name == "done"
