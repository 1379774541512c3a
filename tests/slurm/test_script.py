"""The sbatch script is the committed one; lanes of max_jobs; a changed submitit is reported in one line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import submitit
from helpers.cluster import cluster_file
from helpers.orchestrator import program
from submitit.core import utils
from submitit.local.local import LocalJob

from jigclu.config import ConfigError
from orchestrate import clusters, submitit_bridge
from orchestrate.slurm.script import write_pickle, write_script
from orchestrate.slurm.submit import Throttle

GOLDEN = Path(__file__).with_name("golden_sbatch.txt")


@pytest.fixture(autouse=True)
def _tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit writes SLURM scripts only if srun is on the PATH."""
    program(tmp_path / "bin", "srun", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path / "data"))


def write_example(folder: Path) -> Path:
    """The script of two similar jobs on a cluster whose file sets most fields."""
    path = cluster_file(
        folder, partition="gpu", account="vision", qos="long", constraint="a100|h100", gpus_per_task=1, gpu_type="a100",
        cpus_per_task=16, tasks_per_node=2, mem_gb=120.0, minutes=720, setup=["module load cuda"], max_jobs=1,
        options={"mail-type": "FAIL", "exclude": "node13"},
    )  # fmt: skip
    cluster = clusters.load(str(path))
    group, jobs = folder / "runs" / ".submissions" / "group", [folder / "runs" / "pretrain" / name for name in "ab"]
    name, after = "jigclu:table8:pretrain:2-jobs:ab12cd", ["afterok:7:8_1", "afterany:9"]
    return write_script(cluster, cluster.request("pretrain", "paper"), group, name, folder / "tree", jobs, after)


def test_the_sbatch_script_is_the_committed_one(tmp_path: Path) -> None:
    """So a change of submitit or of the suite shows as a diff; to accept it, copy the text printed here to the file."""
    text = write_example(tmp_path).read_text().replace(str(tmp_path), "/FOLDER")
    text = text.replace(shlex.quote(sys.executable), "/PYTHON")
    assert text == GOLDEN.read_text(), text


def test_with_max_jobs_each_job_waits_for_the_last_one_of_its_lane() -> None:
    for active, expected in (([], [None, None, "4", "5"]), (["1", "2", "3"], ["2", "3", "4", "5"])):
        throttle, waits_for = Throttle(2, active), []
        for slurm_id in ("4", "5", "6", "7"):
            waits_for.append(throttle.take_lane())
            throttle.add(slurm_id)
        assert waits_for == expected


def test_the_pickle_runs_in_a_python_of_its_own(tmp_path: Path) -> None:
    """submitit's run module loads it, as in a SLURM task, and calls the worker on the job's folder."""
    job = tmp_path / "runs" / "pretrain" / "ab12cd34ef56"
    (job / "logs").mkdir(parents=True)
    (job / "result.json").write_text('{"metrics": {"loss": 1.0}}')  # a finished job: the worker returns at once
    write_pickle(job, 60)
    assert [path.name for path in (job / "logs").iterdir()] == ["job.pkl"]
    (job / "logs" / "7_submitted.pkl").symlink_to("job.pkl")
    env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
           "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node1",
           "SUBMITIT_EXECUTOR": "slurm"}  # fmt: skip
    command = submitit_bridge.run_command(shlex.quote(sys.executable), str(job / "logs"))
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "Job completed successfully" in done.stdout, done.stdout + done.stderr


def test_a_submitit_without_one_of_its_private_names_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job"
    (job / "logs").mkdir(parents=True)
    message = rf"submitit {submitit.__version__} has no %s, which the suite needs; install submitit>=1.5.3,<1.6"
    with monkeypatch.context() as patch:
        patch.setattr(submitit.SlurmExecutor, "_make_submission_file_text", None)
        with pytest.raises(ConfigError, match=message % "SlurmExecutor._make_submission_file_text"):
            write_example(tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr(utils, "DelayedSubmission")
        with pytest.raises(ConfigError, match=message % "core.utils.DelayedSubmission"):
            write_pickle(job, 60)
    with monkeypatch.context() as patch:
        patch.setattr(utils.DelayedSubmission, "set_timeout", lambda self, minutes: None)
        with pytest.raises(ConfigError, match=r"has DelayedSubmission.set_timeout\(self, minutes\), not "):
            write_pickle(job, 60)
    with monkeypatch.context() as patch:
        patch.setattr(submitit_bridge, "RUN_MODULE", "submitit.core.nothing")
        with pytest.raises(ConfigError, match=message % "submitit.core.nothing"):
            submitit_bridge.run_command("python", "logs")
    with monkeypatch.context() as patch:
        patch.setattr(LocalJob, "__init__", lambda self: None)
        with pytest.raises(ConfigError, match=message % "LocalJob._process"):
            submitit_bridge.check_local()
    with pytest.raises(ConfigError, match=message % "LocalJob._process"):
        submitit_bridge.controller(object())
    write_example(tmp_path)
    write_pickle(job, 60)
    submitit_bridge.check_local()
