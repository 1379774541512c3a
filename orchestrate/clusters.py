"""Where jobs run: clusters/*.yaml or the user's own file, strictly read, as submitit executors."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from jigclu.config import ConfigError, nearest
from orchestrate.experiments import read_yaml

ROOT = Path(__file__).parent / "clusters"
NO_LIMIT = 60 * 24 * 365  # minutes; submitit's local executor wants a number
# A warning that comes before Python can heed it must not end the job: SLURM requeues what it preempts only if it still runs.
PATIENT = """sh -c 'trap "" USR2 TERM; exec "$@"' sh """


class Cluster(BaseModel):
    """A place to run. Every field but `kind` is the site's own naming, for sbatch; `None` leaves it to the cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["local", "slurm"]
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: bool = True
    cpus_per_task: int = 8
    mem_gb: float | None = None
    minutes: int = 24 * 60
    setup: tuple[str, ...] = ()
    options: dict[str, str | int | bool] = {}


def load(word: str | None) -> Cluster:
    """By name, by path, or (None) slurm where sbatch is found, else local. ConfigError names the valid choices."""
    word = word or ("slurm" if shutil.which("sbatch") else "local")
    names = sorted(path.stem for path in ROOT.glob("*.yaml"))
    path = ROOT / f"{word}.yaml" if word in names else Path(word)
    if not path.is_file():
        raise ConfigError(f"unknown cluster {word!r}; {nearest(word, names)}, or the path of a YAML file")
    try:
        cluster = Cluster.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{path}: unknown key {key}; {nearest(key, list(Cluster.model_fields))}") from None
        raise ConfigError(f"{path}: {key}: {first['msg']}") from None
    if cluster.kind == "slurm" and not shutil.which("sbatch"):
        raise ConfigError(
            f"cluster {cluster.name!r} needs SLURM, and there is no sbatch on the PATH; --cluster local runs here"
        )
    return cluster


def visible_gpus() -> list[int]:
    """Indices of this machine's GPUs that CUDA_VISIBLE_DEVICES leaves, without importing torch.

    ConfigError for GPUs named otherwise (UUIDs, MIG slices): submitit's local executor takes indices.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        words = [word.strip() for word in visible.split(",") if word.strip()]
        if odd := [word for word in words if not word.lstrip("-").isdigit()]:
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES names {odd[0]!r}; name GPUs by index, as nvidia-smi -L numbers them"
            )
        return [int(word) for word in words if int(word) >= 0]
    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return list(range(sum(line.startswith("GPU ") for line in listing.splitlines())))


def job_environment(tree: Path) -> dict[str, str]:
    """What makes a job import the frozen tree and nothing of the folder that it was started in."""
    return {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}


def sbatch_flags(cluster: Cluster, tasks: int, after: list[str]) -> dict[str, Any]:
    """sbatch's options by their long names: the cluster's own `options` win, `false` there leaves one of ours out."""
    flags: dict[str, Any] = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus_per_node": tasks if cluster.gpus else None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{round(cluster.mem_gb * 1024)}M" if cluster.mem_gb else None,
        "requeue": True,  # a site may have JobRequeue=0
        **{key.replace("-", "_"): value for key, value in cluster.options.items()},
    }
    if after:
        flags |= {"dependency": "afterok:" + ":".join(after), "kill_on_invalid_dep": "yes"}
    return {key: value for key, value in flags.items() if value is not None and value is not False}


def slurm_executor(cluster: Cluster, logs: Path, name: str, tree: Path, gpus: int, after: list[str]) -> Any:
    """A submitit executor for one job on one node: one task a GPU; it starts when the jobs `after` have ended well."""
    import submitit

    executor = submitit.SlurmExecutor(folder=logs, python=PATIENT + shlex.quote(sys.executable))
    tasks = max(1, gpus) if cluster.gpus else 1
    flags = sbatch_flags(cluster, tasks, after)
    # srun takes no --cpus-per-task from sbatch since SLURM 22.05; a rank that dies must not leave the others waiting for it.
    step = ["--kill-on-bad-exit=1"]
    if "cpus_per_task" in flags:
        step.append(f"--cpus-per-task={flags['cpus_per_task']}")
    exports = [f"export {key}={shlex.quote(value)}" for key, value in job_environment(tree).items()]
    executor.update_parameters(
        job_name=name, time=cluster.minutes, nodes=1, ntasks_per_node=tasks, srun_args=step,
        wckey=None,  # submitit's own default, wckey "submitit", is refused where wckeys are tracked
        setup=[*cluster.setup, *exports], additional_parameters=flags,
    )  # fmt: skip
    return executor


def local_executor(logs: Path, gpu: int | None) -> Any:
    """A submitit executor for one job on this machine, on one GPU or none."""
    import submitit

    executor = submitit.LocalExecutor(folder=logs)
    executor.update_parameters(
        timeout_min=NO_LIMIT,
        tasks_per_node=1,
        gpus_per_node=0 if gpu is None else 1,
        visible_gpus=[] if gpu is None else [gpu],
        stderr_to_stdout=True,
    )
    return executor
