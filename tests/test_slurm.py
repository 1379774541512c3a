"""SLURM: what sbatch is told, and (where a cluster is there) submission, refusal, stop, requeue and cancellation for real."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from orchestrated import PRETRAIN, PROBE, TINY, named, prepared_store, refused, run, start, table8

from jigclu.config import ConfigError, parse
from jigclu.stages import linear, pretrain
from jigclu.training.folder import JobFolder
from orchestrate import clusters, states
from orchestrate.experiments import find
from orchestrate.plan import make_plan
from orchestrate.states import in_queue, state_of, submission

EPOCHS = 12  # 60 steps: time to stop it in mid-training


def live(test: Callable[..., None]) -> Callable[..., None]:
    absent = "SLURM_CONF" not in os.environ
    return pytest.mark.slurm(pytest.mark.skipif(absent, reason="no live SLURM: SLURM_CONF is not set")(test))


def cluster_file(folder: Path, **fields: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", "cpus_per_task": 1, **fields}))
    return path


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which sbatch and srun are found, though no SLURM is behind them."""
    for name in ("sbatch", "srun"):
        program(tmp_path / "bin", name, "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"


# -- what sbatch is told ----------------------------------------------------------------------------------------------
def sbatch_file(path: Path, gpus: int = 1, after: tuple[str, ...] = ()) -> list[str]:
    """The lines that submitit hands to sbatch for one job of the cluster in this file."""
    tree = path.parent / "a tree"
    executor = clusters.slurm_executor(clusters.load(str(path)), path.parent / "logs", "a:job", tree, gpus, list(after))
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    return text.splitlines()


@pytest.mark.usefixtures("tools")
def test_a_cluster_file_reaches_sbatch(tmp_path: Path) -> None:
    path = cluster_file(
        tmp_path, partition="gpu", account="vision", qos="long", constraint="a100|h100", cpus_per_task=6, mem_gb=1.5,
        minutes=90, setup=["module load cuda"], options={"mail-type": "FAIL", "nice": 100, "exclusive": True},
    )  # fmt: skip
    lines = sbatch_file(path, gpus=4, after=("7", "8"))
    wanted = {
        "partition=gpu", "account=vision", "qos=long", "constraint='a100|h100'", "cpus-per-task=6", "mem=1536M",
        "time=90", "mail-type=FAIL", "nice=100", "exclusive", "gpus-per-node=4", "ntasks-per-node=4", "nodes=1",
        "job-name=a:job", "requeue", "signal=USR2@90", "open-mode=append",
        "dependency=afterok:7:8", "kill-on-invalid-dep=yes",
    }  # fmt: skip
    told = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {line for line in told if not line.startswith(("output=", "error="))} == wanted
    setup = lines[lines.index("# setup") + 1 : lines.index("# command") - 1]
    assert setup == ["module load cuda", f"export PYTHONPATH='{tmp_path / 'a tree'}'", "export PYTHONSAFEPATH=1"]
    (step,) = [line for line in lines if line.startswith("srun ")]
    assert " --cpus-per-task=6 " in step and " --kill-on-bad-exit=1 " in step


@pytest.mark.usefixtures("tools")
def test_gpus_false_asks_for_none_and_one_task(tmp_path: Path) -> None:
    text = "\n".join(sbatch_file(cluster_file(tmp_path, gpus=False), gpus=4))
    assert "#SBATCH --gpu" not in text and "#SBATCH --ntasks-per-node=1\n" in text


@pytest.mark.usefixtures("tools")
def test_a_sites_own_options_replace_ours(tmp_path: Path) -> None:
    """In sbatch's spelling or YAML's; false leaves one of ours out."""
    options = {"gpus_per_node": False, "gres": "gpu:a100:1", "cpus-per-task": 3, "requeue": False}
    text = "\n".join(sbatch_file(cluster_file(tmp_path, options=options)))
    assert "--gres=gpu:a100:1\n" in text and "gpus-per-node" not in text and "--requeue" not in text
    assert text.count("#SBATCH --cpus-per-task=3\n") == 1 and "=1 --cpus-per-task=3 " in text


@pytest.mark.usefixtures("tools")
def test_a_warning_before_python_can_heed_it_does_not_end_the_job(tmp_path: Path) -> None:
    """The step's command, with a python that takes its time: the stop signals come while it starts."""
    (step,) = [line for line in sbatch_file(cluster_file(tmp_path)) if line.startswith("srun ")]
    command = step[step.index("sh -c ") : step.index(" -u -m submitit")]
    child = subprocess.Popen(["sh", "-c", f"exec {command} -c 'import time; print(1, flush=True); time.sleep(1)'"],
                             stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout and child.stdout.readline() == b"1\n"
    for number in (12, 15):
        child.send_signal(number)
    assert child.wait(timeout=30) == 0


def test_a_cluster_files_mistakes_are_told(tmp_path: Path) -> None:
    for fields, told in (
        (
            {"partiton": "gpu"},
            "unknown key partiton; .*partition",
        ),
        ({"cpus_per_task": "many"}, "cpus_per_task: "),
        ({"kind": "pbs"}, "kind: .*'local' or 'slurm'"),
    ):
        with pytest.raises(ConfigError, match=told):
            clusters.load(str(cluster_file(tmp_path, **fields)))


def test_without_sbatch_slurm_is_refused_and_local_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words, path = ["table8", "--scale", "smoke", "--dry-run"], {"PATH": str(tmp_path / "empty")}
    refused(tmp_path / "runs", [*words, "--cluster", "slurm"], "no sbatch on the PATH", "--cluster local", **path)
    assert "7 to run on local" in run(tmp_path / "runs", words, **path).stdout


def test_with_sbatch_slurm_is_the_default(tools: Path, tmp_path: Path) -> None:
    told = run(tmp_path / "runs", ["table8", "--scale", "smoke", "--dry-run"], PATH=str(tools))
    assert "7 to run on slurm" in told.stdout


def test_sbatchs_own_words_come_in_one_line(tools: Path, tmp_path: Path, template: Path) -> None:
    program(tools, "sbatch", "echo 'sbatch: error: Invalid account' >&2; echo 'sbatch: error: No job' >&2; exit 1")
    words = [*table8(), "--cluster", str(cluster_file(tmp_path))]
    refused(
        prepared_store(tmp_path / "runs", template), words, f"sbatch refused {PRETRAIN}: Invalid account; No job\n",
        PATH=os.environ["PATH"],
    )  # fmt: skip


# -- what squeue says -------------------------------------------------------------------------------------------------
@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_asked", (float("-inf"), {}))


@pytest.mark.usefixtures("unasked")
def test_a_job_is_in_the_queue_while_squeue_lists_it(tools: Path) -> None:
    program(tools, "squeue", "echo '7|None|/a/b.sh'; echo '8|DependencyNeverSatisfied|/a/c.sh'")
    assert in_queue("7") and not in_queue("8") and not in_queue("9")
    program(tools, "squeue", "echo '9|None|/a/d.sh'")
    assert in_queue("9")  # a no is asked for again at once


@pytest.mark.usefixtures("unasked")
def test_a_job_counts_as_queued_while_slurm_does_not_answer(tools: Path) -> None:
    program(tools, "squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    assert in_queue("7")


# -- for real ---------------------------------------------------------------------------------------------------------
def call(cluster: Path, *more: str) -> list[str]:
    return [
        *table8(pretrain__epochs=EPOCHS),
        "--cluster",
        str(cluster),
        *more,
    ]


def answer(store: Path, cluster: Path, *more: str) -> tuple[int, str]:
    done = run(store, call(cluster, *more), SLURM_CONF=os.environ["SLURM_CONF"])
    return done.returncode, done.stdout + done.stderr


def store_with_only(folder: Path, template: Path, *names: str) -> Path:
    """A store in which every other job of the table counts as done."""
    store = prepared_store(folder / "runs", template)
    plan = make_plan(find(["table8"]), "smoke", "official", 1, {**TINY, "pretrain.epochs": EPOCHS})
    states.write_jobs(plan, store)
    for job in plan.jobs.values():
        if job.name not in names:
            job.folder(store).write_result({"top1": 0.0, "loss": 0.0})
    return store


def slurm_ids(store: Path, *names: str) -> list[str]:
    return [str(submission(named(store, name))["slurm_id"]) for name in names]


def until_step(job: JobFolder, step: int) -> None:
    deadline = time.monotonic() + 200
    while not any(line["step"] >= step for line in job.metrics()):
        assert time.monotonic() < deadline and job.status.get("state") != "failed", job.status
        time.sleep(0.01)


def recomputed(job: JobFolder, store: Path) -> JobFolder:
    """The same job in this process, uninterrupted."""
    folder, values = JobFolder(store / job.path.parent.name / job.id).create(), job.job
    folder.update_job(**values)
    config = {**values["config"], "runtime": {**values["config"]["runtime"], "device": "cpu"}}
    {"pretrain": pretrain, "linear": linear}[values["stage"]].run(parse(values["stage"], config), folder.path)  # type: ignore[attr-defined]
    return folder


@live
def test_a_refusal_leaves_nothing_and_a_second_call_submits_nothing(tmp_path: Path, template: Path) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN, PROBE)
    nowhere = cluster_file(tmp_path, gpus=False, partition="nowhere")
    told = (f"sbatch refused {PRETRAIN}", "invalid partition specified: nowhere")
    refused(store, call(nowhere), *told, SLURM_CONF=os.environ["SLURM_CONF"])
    assert not [script for script in states.queue().values() if str(store) in script]
    held = cluster_file(tmp_path, gpus=False, options={"hold": True})
    code, said = answer(store, held)
    assert code == 0 and "jobs: 2 submitted, 5 done already" in said, said
    first, second = ids = slurm_ids(store, PRETRAIN, PROBE)
    assert sorted(key for key, script in states.queue().items() if str(store) in script) == sorted(ids)
    asked = subprocess.run(["squeue", "-h", "-o", "%E", "-j", second], capture_output=True, text=True, check=True)
    assert asked.stdout.startswith(f"afterok:{first}(")
    code, said = answer(store, held)
    assert code == 0 and "jobs: 2 in the queue already, 5 done already" in said, said
    assert slurm_ids(store, PRETRAIN, PROBE) == ids
    subprocess.run(["scancel", *ids], check=True)
    code, said = answer(store, held)
    assert code == 0 and "jobs: 2 submitted" in said, said
    subprocess.run(["scancel", *slurm_ids(store, PRETRAIN, PROBE)], check=True)


@live
def test_a_stopped_job_requeues_itself_and_ends_bit_equal(tmp_path: Path, template: Path) -> None:
    store, cluster = store_with_only(tmp_path, template, PRETRAIN, PROBE), cluster_file(tmp_path, gpus=False)
    code, said = answer(store, cluster)
    assert code == 0 and "jobs: 2 submitted" in said, said
    job, probe, ids = named(store, PRETRAIN), named(store, PROBE), slurm_ids(store, PRETRAIN, PROBE)
    until_step(job, 2)
    subprocess.run(["scancel", "--signal=USR2", ids[0]], check=True)  # what SLURM sends before the time limit
    code, said = answer(store, cluster, "--wait")
    assert code == 0 and "jobs: 2 in the queue already" in said, said
    assert slurm_ids(store, PRETRAIN, PROBE) == ids
    assert (job.status["state"], job.status["attempt"], job.status["slurm_job_id"]) == ("done", 2, ids[0])
    assert (probe.status["state"], probe.status["attempt"]) == ("done", 1)
    whole = recomputed(job, tmp_path / "whole")
    ours, theirs = (torch.load(folder.path / "encoder.pt", weights_only=True) for folder in (job, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [(line["step"], line["loss"]) for line in job.metrics()] == [
        (line["step"], line["loss"]) for line in whole.metrics()
    ]
    assert probe.result["metrics"] == recomputed(probe, tmp_path / "whole").result["metrics"]
    code, said = answer(store, cluster)
    assert code == 0 and "all 7 jobs are done already" in said, said


@live
def test_a_cancelled_job_stays_cancelled_and_goes_on_when_asked(tmp_path: Path, template: Path) -> None:
    store, cluster = store_with_only(tmp_path, template, PRETRAIN), cluster_file(tmp_path, gpus=False)
    following = start(store, call(cluster, "--wait"), SLURM_CONF=os.environ["SLURM_CONF"])
    deadline = time.monotonic() + 100
    job = named(store, PRETRAIN)
    while not submission(job).get("slurm_id"):
        assert time.monotonic() < deadline and following.poll() is None
        time.sleep(0.05)
    until_step(job, 2)
    subprocess.run(["scancel", *slurm_ids(store, PRETRAIN)], check=True)
    said = following.communicate()[0]
    assert following.returncode == 1 and f"interrupted {job.id}" in said, said
    assert state_of(job) == "interrupted" and "stopped at step" in job.status["message"]
    code, said = answer(store, cluster, "--wait")
    assert code == 0 and "jobs: 1 submitted" in said, said
    assert (job.status["state"], job.status["attempt"]) == ("done", 2)
