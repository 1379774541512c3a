"""Submission to a live SLURM cluster: each job once, even if orchestrators are killed; names and dependencies."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.cluster import (
    answer,
    call,
    cancel_all,
    cluster_file,
    in_queue,
    live,
    orchestrate,
    sent,
    slurm_env,
    slurm_ids,
    store_with_only,
    submitted,
    until,
    until_state,
)
from helpers.orchestrator import PRETRAIN, PROBE, RANDOM, named, prepared_store, refused, run, start

from orchestrate.jobs import submissions
from orchestrate.jobs.states import state_of

EVERYTHING = ["all", "--scale", "smoke", "--cluster"]


@live
@pytest.mark.parametrize(
    ("field", "message"),
    [("partition", "invalid partition specified: nowhere"), ("account", "Invalid account or account/partition")],
)
def test_a_bad_partition_or_account_submits_nothing(tmp_path: Path, template: Path, field: str, message: str) -> None:
    """sbatch's own message; the refused stage comes last, and yet nothing before it is submitted."""
    store = store_with_only(tmp_path, template, PRETRAIN, PROBE)
    cluster = cluster_file(tmp_path, stages={"linear": {field: "nowhere"}})
    refused(store, call(cluster), f"sbatch refused {PROBE}: ", message, "nothing was submitted", **slurm_env())
    assert not in_queue(store) and not list(submissions.submissions_folder(store).iterdir())
    assert state_of(named(store, PRETRAIN)) == "new"


@live
def test_a_second_run_submits_nothing_but_a_cancelled_job_again(tmp_path: Path, template: Path) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN, PROBE)
    held = cluster_file(tmp_path, options={"hold": True})
    submitted(store, held, PRETRAIN, PROBE)
    first, second = ids = slurm_ids(store, PRETRAIN, PROBE)
    assert sorted(in_queue(store)) == sorted(ids)
    listing = subprocess.run(["squeue", "-h", "-o", "%E", "-j", second], capture_output=True, text=True, check=True)
    assert listing.stdout.startswith(f"afterok:{first}(")
    code, said = answer(store, held)
    assert code == 0 and "2 in the queue already" in said, said
    assert slurm_ids(store, PRETRAIN, PROBE) == ids
    subprocess.run(["scancel", *ids], check=True)
    code, said = answer(store, held)
    assert code == 0 and "jobs: 2 submitted, 5 done already" in said, said
    cancel_all(store)


@live
def test_similar_jobs_are_one_array_and_squeue_shows_their_names(tmp_path: Path, template: Path) -> None:
    store, held = prepared_store(tmp_path / "runs", template), cluster_file(tmp_path, options={"hold": True})
    code, said = answer(store, held)
    assert code == 0 and "jobs: 7 submitted" in said, said
    rows = subprocess.run(["squeue", "-h", "--me", "-r", "-o", "%i|%j|%E"], capture_output=True, text=True, check=True)
    own = in_queue(store)
    found = {
        key: (name, after) for key, name, after in (line.split("|") for line in rows.stdout.splitlines()) if key in own
    }
    pretrainings = {key: name for key, (name, _) in found.items() if ":pretrain:" in name}
    assert len(pretrainings) == 3 and len({key.split("_")[0] for key in pretrainings}) == 1
    assert all(re.fullmatch(r"jigclu:table8:pretrain:3-jobs:[0-9a-f]{6}", name) for name in pretrainings.values())
    probes = {name: after for name, after in found.values() if ":linear:" in name}
    for m, index in (("m2", 0), ("m3", 1), ("m4", 2)):
        ((_, after),) = [(name, after) for name, after in probes.items() if f":{m}:" in name]
        assert re.match(rf"afterok:\d+_{index}\(", after), after
    names = [name for name in probes if re.fullmatch(r"jigclu:table8:linear:(m2|m3|m4|random-init):[0-9a-f]{6}", name)]
    assert len(names) == 4
    cancel_all(store)


@live
def test_max_jobs_limits_all_jobs_of_a_command_together(tmp_path: Path, template: Path) -> None:
    """Two lanes: of the seven jobs all but the first two wait for an earlier one, each for a different one."""
    store = prepared_store(tmp_path / "runs", template)
    code, said = answer(store, cluster_file(tmp_path, options={"hold": True}, max_jobs=2))
    assert code == 0 and "jobs: 7 submitted" in said, said
    listing = subprocess.run(["squeue", "-h", "--me", "-o", "%i %E"], capture_output=True, text=True, check=True)
    own = in_queue(store)
    after = [re.findall(r"afterany:(\d+)", line) for line in listing.stdout.splitlines() if line.split()[0] in own]
    before = [slurm_id for (slurm_id,) in filter(None, after)]
    assert len(after) == 7 and len(before) == 5 and len(set(before)) == 5
    cancel_all(store)


@live
def test_two_orchestrators_at_once_submit_every_job_once(tmp_path: Path, template: Path) -> None:
    store, held = prepared_store(tmp_path / "runs", template), cluster_file(tmp_path, options={"hold": True})
    both = [start(store, [*EVERYTHING, str(held)], **slurm_env()) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    jobs = [path.parent.name for path in store.glob("[a-z]*/*/job.json")]
    assert sent(store) == Counter(jobs) and len(jobs) > 90
    assert sum("in the queue already" in output for output in outputs) == 1, outputs
    cancel_all(store)


def group_count(store: Path) -> int:
    return len(list(submissions.submissions_folder(store).glob("*/group.json")))


@live
def test_an_orchestrator_killed_at_any_moment_neither_loses_nor_doubles_a_job(tmp_path: Path, template: Path) -> None:
    """Ten SIGKILLs at random moments of submitting everything; after one more run every job is in the queue once."""
    held = cluster_file(tmp_path, options={"hold": True})
    store = prepared_store(tmp_path / "runs", template)
    draw, killed = random.Random(5), []
    for _ in range(10):
        orchestrator = start(store, [*EVERYTHING, str(held)], **slurm_env())
        before, wanted = (
            group_count(store),
            draw.randint(0, 3),
        )  # killed a moment after it has written more than `wanted` groups
        while orchestrator.poll() is None and group_count(store) <= before + wanted:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        killed.append(orchestrator.poll() is None)
        orchestrator.kill()
        orchestrator.communicate()
    assert sum(killed) >= 8, killed
    done = run(store, [*EVERYTHING, str(held)], **slurm_env())
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = [path.parent.name for path in store.glob("[a-z]*/*/job.json")]
    assert sent(store) == Counter(jobs) and len(jobs) > 90
    again = run(store, [*EVERYTHING, str(held)], **slurm_env())
    assert f"jobs: {len(jobs)} in the queue already" in again.stdout, again.stdout + again.stderr
    cancel_all(store)


@live
def test_a_job_whose_orchestrator_died_before_recording_its_id_is_found(tmp_path: Path, template: Path) -> None:
    store, cluster = store_with_only(tmp_path, template, PRETRAIN), cluster_file(tmp_path)
    (job,) = submitted(store, cluster, PRETRAIN, pretrain__epochs=12)
    (slurm_id,) = in_queue(store)
    name = submissions.submission(job)["group"]
    path = submissions.submissions_folder(store) / name / submissions.GROUP
    path.write_text(path.read_text().replace('"slurm_id"', '"unknown"'))  # as if it had died right after sbatch
    assert state_of(job) in ("pending", "running")
    code, said = answer(store, cluster, "--wait")
    assert code == 0 and "1 in the queue already" in said, said
    assert (
        submissions.current_id(job) == slurm_id and job.status["state"] == "done" and len(job.status["attempts"]) == 1
    )


@live
def test_cancel_names_the_experiments_that_require_a_job_and_asks_first(tmp_path: Path, template: Path) -> None:
    store, held = prepared_store(tmp_path / "runs", template), cluster_file(tmp_path, options={"hold": True})
    for words in (["table8"], ["table2", "--cells", "JigClu ImageNet-100"]):
        done = run(store, [*words, "--scale", "smoke", "--cluster", str(held)], **slurm_env())
        assert done.returncode == 0, done.stdout + done.stderr
    before = sent(store)
    code, said = orchestrate(store, "cancel", "table8")
    assert code == 1 and "(required by table2)" in said and "nothing was cancelled (--yes" in said, said
    assert sent(store) == before
    code, said = orchestrate(store, "cancel", "--yes", "table8")
    assert code == 0 and "cancelled" in said, said
    until(lambda: not sent(store))  # table2's two jobs are among table8's seven
    code, said = orchestrate(store, "status", "table8")
    assert code == 0 and "7 jobs: 7 cancelled" in said, said


@live
def test_a_thousand_jobs_are_planned_submitted_and_listed_in_seconds(tmp_path: Path, template: Path) -> None:
    """A sweep of 143 seeds. CONTRIBUTING.md has measured times; these limits only catch a blunder."""
    store, held = prepared_store(tmp_path / "runs", template), cluster_file(tmp_path, options={"hold": True})
    words = [*call(held), "--seeds", "143"]
    seconds = {}
    for what, more in (("plan", ["--dry-run"]), ("submit", [])):
        began = time.monotonic()
        done = run(store, [*words, *more], **slurm_env())
        seconds[what] = time.monotonic() - began
        assert done.returncode == 0, done.stdout + done.stderr
    assert "jobs: 1001 submitted" in done.stdout, done.stdout
    began = time.monotonic()
    code, said = orchestrate(store, "status")
    seconds["status"] = time.monotonic() - began
    assert code == 0 and "1001 jobs: 1001 pending" in said, said
    print(seconds)
    assert set(sent(store).values()) == {1} and len(sent(store)) == 1001
    cancel_all(store)
    assert seconds["plan"] < 20 and seconds["submit"] < 120 and seconds["status"] < 60, seconds


@live
def test_a_path_that_sbatch_would_expand_is_a_path(tmp_path: Path, template: Path) -> None:
    """In the path of a log sbatch and srun replace %u by the user's name, unless it is written %%u."""
    (tmp_path / "t%u x").mkdir()
    store = store_with_only(tmp_path, template, RANDOM, at=tmp_path / "t%u x" / "runs")
    (job,) = submitted(store, cluster_file(tmp_path), RANDOM)
    assert until_state(job, "done", "failed", "lost").name == "done", job.status
    assert list((job.path / "logs").glob("*_0_log.out")) and submissions.batch_logs(job)
