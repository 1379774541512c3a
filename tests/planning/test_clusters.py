"""Cluster files: how they reach sbatch, which resources a stage gets, and mistakes in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.orchestrator import PRETRAIN, ROOT, prepared_store, program, refused, run, table8

from jigclu.config import ConfigError
from orchestrate import clusters
from orchestrate.planning.experiments import find
from orchestrate.planning.plan import make_plan
from orchestrate.preflight import preflight
from orchestrate.slurm.script import SubmissionRejected, sbatch, write_script


def cluster_file(folder: Path, **fields: Any) -> Path:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", "cpus_per_task": 1, **fields}))
    return path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which sbatch and srun are found, without any SLURM behind them."""
    for name in ("sbatch", "srun", "scontrol"):
        program(tmp_path / "bin", name, "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"


# -- what sbatch gets ----------------------------------------------------------------------------------------------
def script_of(
    path: Path, stage: str = "pretrain", scale: str = "paper", jobs: int = 1, after: tuple[str, ...] = ()
) -> list[str]:
    """The lines of the batch script for jobs on this cluster file."""
    cluster, folders = clusters.load(str(path)), [path.parent / "a store" / f"job{index}" for index in range(jobs)]
    tree = path.parent / "a tree"
    request = cluster.request(stage, scale)
    script = write_script(cluster, request, path.parent / "a store" / "group", "a:job", tree, folders, list(after))
    assert (script.parent / "jobs.txt").read_text().splitlines() == [str(folder) for folder in folders]
    return script.read_text().splitlines()


@pytest.mark.usefixtures("tools")
def test_a_cluster_file_reaches_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path / "some data"))
    path = cluster_file(
        tmp_path, partition="gpu", account="vision", qos="long", constraint="a100|h100", cpus_per_task=6, mem_gb=1.5,
        minutes=90, setup=["module load cuda"], options={"mail-type": "FAIL", "nice": 100, "exclusive": True},
    )  # fmt: skip
    lines = script_of(path, after=("afterok:7:8_1", "afterany:9"))
    wanted = {
        "partition=gpu", "account=vision", "qos=long", "constraint='a100|h100'", "cpus-per-task=6", "mem=1536M",
        "time=90", "mail-type=FAIL", "nice=100", "exclusive", "gpus-per-node=4", "ntasks-per-node=4", "nodes=1",
        "job-name=a:job", "requeue", "signal=USR2@90", "open-mode=append",
        "dependency=afterok:7:8_1,afterany:9", "kill-on-invalid-dep=yes",
    }  # fmt: skip
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {line for line in options if not line.startswith("output=")} == wanted
    setup = lines[lines.index("# setup") + 1 :]
    assert setup[:4] == [
        f"export JIGCLU_DATA='{tmp_path / 'some data'}'", "module load cuda",
        f"export PYTHONPATH='{tmp_path / 'a tree'}'", "export PYTHONSAFEPATH=1",
    ]  # fmt: skip
    (step,) = [line for line in lines if line.startswith("srun ")]
    assert " --cpus-per-task=6 " in step and " --export=ALL " in step and " --kill-on-bad-exit=1 " in step


@pytest.mark.usefixtures("tools")
def test_each_task_of_an_array_finds_its_own_job(tmp_path: Path) -> None:
    """The script, run by a shell as SLURM would: pickle and log are in the job's folder, named by the task's id."""
    lines = script_of(cluster_file(tmp_path, max_jobs=2), jobs=3)
    assert "#SBATCH --array=0-2%2" in lines
    text = "\n".join(line for line in lines if not line.startswith("srun ")) + '\necho "$logs|$id"\n'
    for index in range(3):
        (tmp_path / "a store" / f"job{index}" / "logs").mkdir(parents=True)
    for env, job, name in (
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "job2", "7_2"),
        ({"SLURM_JOB_ID": "9"}, "job0", "9"),
    ):
        done = subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **env}, check=True
        )
        logs = tmp_path / "a store" / job / "logs"
        assert done.stdout == f"{logs}|{name}\n" and os.readlink(logs / f"{name}_submitted.pkl") == "job.pkl"


@pytest.mark.usefixtures("tools")
def test_a_sites_own_options_replace_those_of_the_suite(tmp_path: Path) -> None:
    """In sbatch's spelling or YAML's; false removes an option of the suite."""
    options = {"gpus_per_node": False, "gpus": "a100:4", "signal": "USR2@300"}
    text = "\n".join(script_of(cluster_file(tmp_path, options=options)))
    assert "--gpus=a100:4\n" in text and "gpus-per-node" not in text
    assert text.count("#SBATCH --signal=USR2@300\n") == text.count("--signal") == 1


@pytest.mark.usefixtures("tools")
def test_a_site_can_name_its_gpus_by_type(tmp_path: Path) -> None:
    """By either of sbatch's options; one GPU per task at every stage."""
    fields = {"gpu_type": "a100", "gpu_option": "gres"}
    assert "#SBATCH --gres=gpu:a100:4" in script_of(cluster_file(tmp_path, **fields))
    shutil.rmtree(tmp_path / "a store")
    assert "#SBATCH --gres=gpu:a100:1" in script_of(cluster_file(tmp_path, **fields), stage="linear")
    shutil.rmtree(tmp_path / "a store")
    assert "#SBATCH --gpus-per-node=a100:4" in script_of(cluster_file(tmp_path, gpu_type="a100"))


@pytest.mark.usefixtures("tools")
def test_sbatch_variables_in_the_environment_do_not_override_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path / "bin", "sbatch", f"env | grep ^SBATCH_ > {tmp_path / 'presets'}; echo A banner; echo '42;mycluster'"
    )
    for name in ("PARTITION", "TIMELIMIT", "EXPORT", "ACCOUNT"):
        monkeypatch.setenv(f"SBATCH_{name}", "preset")
    script_of(cluster_file(tmp_path, partition="gpu"))
    assert sbatch(tmp_path / "a store" / "group" / "submission.sh") == "42"
    assert (tmp_path / "presets").read_text() == "SBATCH_ACCOUNT=preset\n"  # the file has no account
    program(tmp_path / "bin", "sbatch", "echo hello")
    with pytest.raises(SubmissionRejected, match="gave no job id but 'hello'"):
        sbatch(tmp_path / "a store" / "group" / "submission.sh")


@pytest.mark.usefixtures("tools")
def test_a_site_can_forbid_requeueing(tmp_path: Path) -> None:
    assert "#SBATCH --no-requeue" in script_of(cluster_file(tmp_path, max_requeues=0))


@pytest.mark.usefixtures("tools")
def test_a_stop_signal_while_python_starts_does_not_end_the_job(tmp_path: Path) -> None:
    """The step's own command; a slow python gets both signals before it has set its handlers."""
    (step,) = [line for line in script_of(cluster_file(tmp_path)) if line.startswith("srun ")]
    command = step[step.index("sh -c ") : step.index(" -u -m submitit")]
    child = subprocess.Popen(["sh", "-c", f"exec {command} -c 'import time; print(1, flush=True); time.sleep(1)'"],
                             stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout and child.stdout.readline() == b"1\n"
    for number in (12, 15):
        child.send_signal(number)
    assert child.wait(timeout=30) == 0


# -- the resources of a stage at a scale ------------------------------------------------------------------------------
@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("fields", "pretrain", "linear"),
    [
        ({}, (1, 4), (1, 1)),  # the paper's four GPUs
        ({"tasks_per_node": 2}, (2, 2), (1, 1)),
        ({"nodes": 4}, (4, 1), (1, 1)),
        ({"nodes": 2, "tasks_per_node": 8}, (2, 8), (1, 1)),  # both: the site decides
        ({"gpus_per_task": 0}, (1, 1), (1, 1)),
        ({"gpus_per_task": 0, "tasks_per_node": 2}, (1, 2), (1, 1)),
        ({"stages": {"pretrain": {"tasks_per_node": 2}}}, (2, 2), (1, 1)),
    ],
)
def test_the_scales_gpus_are_spread_over_the_sites_nodes(
    tmp_path: Path, fields: dict[str, Any], pretrain: tuple[int, int], linear: tuple[int, int]
) -> None:
    cluster = clusters.load(str(cluster_file(tmp_path, **fields)))
    for stage, wanted in (("pretrain", pretrain), ("linear", linear)):
        request = cluster.request(stage, "paper")
        assert (request.nodes, request.tasks_per_node) == wanted


@pytest.mark.usefixtures("tools")
def test_a_stage_can_have_its_own_limits_and_partition(tmp_path: Path) -> None:
    stages = {"linear": {"minutes": 60, "partition": "small", "cpus_per_task": 2}}
    cluster = clusters.load(str(cluster_file(tmp_path, partition="gpu", minutes=2880, stages=stages)))
    linear, pretrain = cluster.request("linear", "paper"), cluster.request("pretrain", "paper")
    assert (linear.partition, linear.minutes, linear.cpus_per_task) == ("small", 60, 2)
    assert (pretrain.partition, pretrain.minutes, pretrain.cpus_per_task) == ("gpu", 2880, 1)


@pytest.mark.usefixtures("tools")
def test_tasks_that_do_not_divide_evenly_are_refused_before_submission(tmp_path: Path) -> None:
    cluster = clusters.load(str(cluster_file(tmp_path, nodes=3)))
    with pytest.raises(ConfigError, match="pretrain at scale paper uses 4 GPUs, which do not divide by 3 nodes"):
        cluster.request("pretrain", "paper")
    cluster = clusters.load(str(cluster_file(tmp_path, stages={"linear": {"nodes": 1, "tasks_per_node": 2}})))
    with pytest.raises(
        ConfigError, match="stage linear runs in one task, not in 2; stages with several: detect, finetune, pretrain"
    ):
        cluster.request("linear", "paper")
    cluster = clusters.load(str(cluster_file(tmp_path, nodes=1, tasks_per_node=3)))
    jobs = make_plan(find(["table8"]), "smoke", "official").jobs.values()
    placements = clusters.place_jobs(jobs, tmp_path / "runs", cluster)
    with pytest.raises(ConfigError, match=r"a batch of 50 does not divide by 3 tasks \(1 nodes of 3\)"):
        preflight(list(placements.values()), tmp_path / "runs", cluster)
    assert not (tmp_path / "runs").exists()


def test_the_number_of_gpus_changes_no_job_id(tmp_path: Path, tools: Path) -> None:
    ids = []
    for tasks in (1, 2, 4):
        path = cluster_file(tmp_path, nodes=1, tasks_per_node=tasks)
        done = run(tmp_path / "runs", ["table8", "--dry-run", "--cluster", str(path)], PATH=str(tools))
        ids.append([line.split()[0] for line in done.stdout.splitlines() if "seed 0" in line])
    assert ids[0] and ids[0] == ids[1] == ids[2]


# -- mistakes ---------------------------------------------------------------------------------------------------------
def test_slurms_notation_of_time_is_refused_as_minutes(tmp_path: Path) -> None:
    """YAML 1.1 reads 12:00:00 in base 60: 43200 minutes."""
    path = tmp_path / "site.yaml"
    path.write_text("kind: slurm\nminutes: 12:00:00\n")
    with pytest.raises(ConfigError, match="minutes: a whole number is expected"):
        clusters.load(str(path))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"partiton": "gpu"}, "unknown key partiton; .*partition"),
        ({"cpus_per_task": "many"}, "cpus_per_task: "),
        ({"kind": "pbs"}, "kind: 'pbs' is not a valid choice; valid: local, slurm"),
        ({"minutes": "60"}, "minutes: a whole number is expected"),
        ({"options": {"ntasks-per-node": 3}}, "options: ntasks-per-node has a field of its own here: tasks_per_node"),
        ({"options": {"clusters": "other"}}, "options: clusters is reserved"),
        ({"options": {"array": "0-3"}}, "options: array is reserved"),
        ({"gpus_per_task": 2}, "gpus_per_task: .*less than or equal to 1"),
        ({"stages": {"pretran": {}}}, "unknown key stages.pretran; valid: .*did you mean pretrain"),
        ({"stages": {"linear": {"minuts": 5}}}, "unknown key stages.linear.minuts; .*did you mean minutes"),
    ],
)
def test_a_mistake_in_a_cluster_file_is_reported(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        clusters.load(str(cluster_file(tmp_path, **fields)))


def test_without_sbatch_slurm_is_refused_and_local_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words, path = ["table8", "--scale", "smoke"], {"PATH": str(tmp_path / "empty")}
    refused(tmp_path / "runs", [*words, "--cluster", "slurm"], "no sbatch on the PATH", "--cluster local", **path)
    assert "7 to run on local" in run(tmp_path / "runs", [*words, "--dry-run"], **path).stdout
    planned = run(tmp_path / "runs", [*words, "--dry-run", "--cluster", "slurm"], **path).stdout
    assert "7 to run on slurm" in planned and "pretrain: 1 node x 1 GPU, 8 CPUs a task, 1 d 0 h at a time" in planned


def test_the_dry_run_prints_what_would_stop_the_run(tmp_path: Path) -> None:
    path = cluster_file(tmp_path, nodes=1, tasks_per_node=3, partition="gpu")
    done = run(
        tmp_path / "runs",
        ["table8", "--scale", "smoke", "--dry-run", "--cluster", str(path), "--budget", "0.001", "--gpus", "2"],
    )
    assert "GPUs, the least that one of its jobs needs; 2 are too few: " in done.stdout, done.stdout
    assert "pretrain: 1 node x 3 GPU, 1 CPUs a task, 1 d 0 h at a time (gpu)" in done.stdout
    assert (
        "would stop: an estimated " in done.stdout
        and "would stop: pretrain resnet10 textures m=2 seed 0: a batch of 50" in done.stdout
    )


def test_with_sbatch_slurm_is_the_default(tools: Path, tmp_path: Path) -> None:
    planned = run(tmp_path / "runs", ["table8", "--scale", "smoke", "--dry-run"], PATH=str(tools))
    assert "7 to run on slurm" in planned.stdout


def test_a_message_of_sbatch_is_shown_in_one_line(tools: Path, tmp_path: Path, template: Path) -> None:
    program(tools, "sbatch", "echo 'sbatch: error: Invalid account' >&2; echo 'sbatch: error: No job' >&2; exit 1")
    words = [*table8(), "--cluster", str(cluster_file(tmp_path))]
    refused(
        prepared_store(tmp_path / "runs", template), words, f"sbatch refused {PRETRAIN}: Invalid account; No job ",
        "nothing was submitted", PATH=os.environ["PATH"],
    )  # fmt: skip


@pytest.mark.usefixtures("tools")
def test_the_documented_cluster_file_and_the_commented_fields_are_valid(tmp_path: Path) -> None:
    """What docs/slurm.md and clusters/slurm.yaml show can be copied; the latter shows every field."""
    text = (ROOT / "docs" / "slurm.md").read_text()
    block = text[text.index("    # mysite.yaml") :].split("\n\n")[0]
    path = tmp_path / "mysite.yaml"
    path.write_text(textwrap.dedent(block))
    site = clusters.load(str(path))
    request = site.request("pretrain", "paper")
    assert (request.nodes, request.tasks_per_node, site.request("linear", "paper").partition) == (2, 2, "small")
    plain = (clusters.ROOT / "slurm.yaml").read_text()
    path.write_text(re.sub(r"^# (?=[a-z_]+:)", "", plain, flags=re.MULTILINE))
    clusters.load(str(path))
    shown = set(re.findall(r"\b[a-z_]+\b", plain))
    assert set(clusters.Cluster.model_fields) - {"name", "path", "nodes"} <= shown


@pytest.mark.parametrize(("words", "expected"), [("0,0", [0]), ("1,0,1", [1, 0]), ("-1", []), (" 2 ", [2])])
def test_gpus_by_index(words: str, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", words)
    assert clusters.visible_gpus() == expected


@pytest.mark.parametrize("words", ["--3", "\u00b2", "0,GPU-1"])
def test_gpus_that_are_no_index_are_named(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", words)
    with pytest.raises(ConfigError, match="name GPUs by index"):
        clusters.visible_gpus()
