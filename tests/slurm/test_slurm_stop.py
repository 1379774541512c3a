"""On a live SLURM cluster: time limits, preemption, lost nodes and ranks do not change the results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from helpers.cluster import (
    EPOCHS,
    answer,
    assert_bit_equal,
    attempt_steps,
    cluster_file,
    in_queue,
    live,
    node,
    orchestrate,
    recomputed,
    slurm_env,
    slurm_ids,
    state,
    store_with_only,
    submitted,
    until,
    until_state,
    until_step,
)
from helpers.orchestrator import PRETRAIN, PROBE, jobs, named, prepared_store, run

from orchestrate.jobs import submissions


@live
def test_a_stopped_job_requeues_itself_and_ends_bit_equal(tmp_path: Path, template: Path) -> None:
    store, cluster = store_with_only(tmp_path, template, PRETRAIN, PROBE), cluster_file(tmp_path)
    job, probe = submitted(store, cluster, PRETRAIN, PROBE)
    ids = slurm_ids(store, PRETRAIN, PROBE)
    until_step(job, 2)
    subprocess.run(["scancel", "--signal=USR2", ids[0]], check=True)  # SLURM's warning before the time limit
    assert until_state(job, "requeued", "done").name == "requeued"
    code, said = answer(store, cluster, "--wait")
    assert code == 0 and "2 in the queue already" in said, said
    assert slurm_ids(store, PRETRAIN, PROBE) == ids
    assert (job.status["state"], len(job.status["attempts"]), job.status["slurm_job_id"]) == ("done", 2, ids[0])
    assert (probe.status["state"], len(probe.status["attempts"])) == ("done", 1)
    assert_bit_equal(job, tmp_path)
    assert probe.result["metrics"] == recomputed(probe, tmp_path / "whole").result["metrics"]
    code, said = answer(store, cluster)
    assert code == 0 and "all 7 jobs are done already" in said, said


@live
def test_the_last_task_of_an_array_requeues_and_renames_only_itself(tmp_path: Path, template: Path) -> None:
    """Its plain SLURM number is the whole array's: requeuing that number would restart the finished tasks as well."""
    store, cluster = prepared_store(tmp_path / "runs", template), cluster_file(tmp_path)
    code, said = answer(store, cluster)
    assert code == 0, said
    pretrainings = sorted(jobs(store, "pretrain"), key=lambda job: submissions.submission(job)["index"])
    last = pretrainings[-1]
    until_step(last, 2)
    names = subprocess.run(["squeue", "-h", "--me", "-o", "%i %j"], capture_output=True, text=True, check=True).stdout
    assert (
        f"{submissions.current_id(last)} jigclu:table8:pretrain:{last.job['label'].replace('=', '')}:{last.id[:6]}"
        in names
    )
    subprocess.run(["scancel", "--signal=USR2", str(submissions.current_id(last))], check=True)
    code, said = answer(store, cluster, "--wait")
    assert code == 0, said
    assert [len(job.status["attempts"]) for job in pretrainings] == [1, 1, 2]
    assert_bit_equal(last, tmp_path)


@live
def test_a_preempted_job_gives_way_and_ends_bit_equal(tmp_path: Path, template: Path) -> None:
    """A job of the high-priority partition takes its node; it saves in the grace time and restarts afterwards."""
    store, cluster = (
        store_with_only(tmp_path, template, PRETRAIN),
        cluster_file(tmp_path, options={"nodelist": "node3"}),
    )
    (job,) = submitted(store, cluster, PRETRAIN)
    until_step(job, 2)
    high = [
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodelist=node3",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 5",
    ]
    first = subprocess.run(high, capture_output=True, text=True, check=True).stdout.strip()
    assert until_state(job, "requeued", "done").name == "requeued"
    until(lambda: first not in subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True).stdout)
    assert until_state(job, "done", "failed").name == "done"
    assert len(attempt_steps(job)) == 2 and attempt_steps(job)[1] >= 2
    assert_bit_equal(job, tmp_path)


@live
@pytest.mark.timeout(600)
def test_a_time_limit_shorter_than_the_training_ends_bit_equal(tmp_path: Path, template: Path) -> None:
    """A training that takes longer than the limit of one minute, the shortest that SLURM allows."""
    settings = {"pretrain__epochs": 45, "pretrain__image_size": 96, "pretrain__data__canvas": 96}
    store = store_with_only(tmp_path, template, PRETRAIN, **settings)
    cluster = cluster_file(tmp_path, minutes=1, options={"signal": "USR2@20"})
    (job,) = submitted(store, cluster, PRETRAIN, **settings)
    assert until_state(job, "done", "failed", "interrupted", "lost", seconds=500).name == "done", job.status
    began = attempt_steps(job)
    assert len(began) > 1 and began == sorted(set(began)), began
    assert_bit_equal(job, tmp_path)


@live
def test_a_node_lost_in_mid_epoch_costs_only_the_steps_after_the_last_checkpoint(
    tmp_path: Path, template: Path
) -> None:
    """SIGKILL of a slurmd and everything below it, after a checkpoint; the job restarts on another node."""
    settings = {"pretrain__epochs": 20, "pretrain__runtime__checkpoint_minutes": 0.02}
    store = store_with_only(tmp_path, template, PRETRAIN, **settings)
    cluster = cluster_file(tmp_path, options={"exclude": "node1"})
    (job,) = submitted(store, cluster, PRETRAIN, **settings)
    until(lambda: list((job.path / "checkpoint").glob("step-*.pt")))
    until_step(job, 23)
    (row,) = in_queue(store).values()
    node(row.nodes, up=False)
    try:
        assert until_state(job, "done", "failed", "lost").name == "done", job.status
    finally:
        node(row.nodes, up=True)
    began = attempt_steps(job)
    assert len(began) == 2 and began[1] > 0 and job.status["attempts"][1]["host"] != row.nodes
    assert_bit_equal(job, tmp_path)


@live
def test_a_cancelled_job_stays_cancelled_and_resumes_on_retry(tmp_path: Path, template: Path) -> None:
    store, cluster = store_with_only(tmp_path, template, PRETRAIN), cluster_file(tmp_path)
    (job,) = submitted(store, cluster, PRETRAIN)
    until_step(job, 2)
    code, said = orchestrate(store, "cancel", job.id)
    assert code == 0 and "cancelled: 1 running job (saved at the next step)" in said, said
    assert "stopped at step" in until_state(job, "cancelled").note
    code, said = orchestrate(store, "retry")
    assert code == 0 and "jobs: 1 submitted" in said, said
    assert until_state(job, "done", "failed").name == "done"
    assert len(attempt_steps(job)) == 2 and attempt_steps(job)[1] >= 2
    assert_bit_equal(job, tmp_path)


@live
@pytest.mark.parametrize("nodes", [1, 2])
def test_two_tasks_train_as_one_process_does(tmp_path: Path, template: Path, nodes: int) -> None:
    """One rank per task, on one node and on two: the losses of one process at the same global batch size."""
    store = store_with_only(tmp_path, template, PRETRAIN)
    (job,) = submitted(store, cluster_file(tmp_path, nodes=nodes, tasks_per_node=2 // nodes), PRETRAIN)
    assert until_state(job, "done", "failed").name == "done", job.status
    assert job.result["world"] == 2
    logs = sorted(path.name.split("_", 1)[1] for path in (job.path / "logs").glob("*_log.out"))
    assert logs == ["0_log.out", "1_log.out"]
    whole = recomputed(job, tmp_path / "whole")
    losses, expected = ([line["loss"] for line in folder.metrics()] for folder in (job, whole))
    # The second loss follows an update from all ranks' gradients; later ones drift apart by rounding.
    # test_ranks.py compares exactly.
    assert len(losses) == EPOCHS * 5 and losses[:2] == pytest.approx(expected[:2], rel=1e-5)


@live
def test_table8_runs_to_the_end_with_two_tasks_a_node(tmp_path: Path, template: Path) -> None:
    """At scale smoke, as a user would run it, with --wait; a second run finds everything done."""
    store, cluster = prepared_store(tmp_path / "runs", template), cluster_file(tmp_path, nodes=1, tasks_per_node=2)
    done = run(store, ["table8", "--scale", "smoke", "--cluster", str(cluster), "--wait"], **slurm_env())
    assert done.returncode == 0 and "jobs: 7 done" in done.stdout, done.stdout + done.stderr
    assert {job.result["world"] for job in jobs(store, "pretrain")} == {2}
    assert {job.result["world"] for job in jobs(store, "linear")} == {1}
    assert named(store, PROBE).result["metrics"]["top1"] > 10
    again = run(store, ["table8", "--scale", "smoke", "--cluster", str(cluster)], **slurm_env())
    assert "all 7 jobs are done already" in again.stdout
    assert state(named(store, PROBE)).name == "done"
