"""Where jobs run: clusters/*.yaml or the user's own file, strictly read; and what a job of a stage asks for there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jigclu.config import ConfigError, error_line, nearest
from orchestrate.planning.overlays import overlay, read_yaml

ROOT = Path(__file__).parent / "clusters"
RANKED = ("detect", "finetune", "pretrain")  # stages that run over several ranks; a frozen encoder is evaluated by one
FIELDS = {  # sbatch's options, and the fields that say them: what is checked before submission must be what is submitted
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node", "ntasks": "tasks_per_node", "cpus-per-task": "cpus_per_task", "mem": "mem_gb",
    "time": "minutes", "gpus-per-task": "gpus_per_task", "requeue": "max_requeues", "no-requeue": "max_requeues",
}  # fmt: skip
OURS = ("array", "output", "error", "dependency", "job-name", "kill-on-invalid-dep", "wrap", "parsable", "test-only",
        "clusters")  # fmt: skip
StageName = Literal["pretrain", "linear", "finetune", "knn", "detect"]
Positive = Annotated[int, Field(ge=1)]


class Request(BaseModel):
    """What a job asks of sbatch. `None` leaves it to the site's defaults (nodes, tasks: to the scale's number of GPUs)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: Positive | None = None
    tasks_per_node: Positive | None = None
    gpus_per_task: Annotated[int, Field(ge=0, le=1)] = 1
    gpu_type: str | None = None  # as the site calls it: a100
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    cpus_per_task: Positive = 8
    mem_gb: Annotated[float, Field(gt=0)] | None = None  # of a node
    minutes: Positive = 24 * 60

    @property
    def ranks(self) -> int:
        return (self.nodes or 1) * (self.tasks_per_node or 1)


class Cluster(Request):
    """A place to run. `stages` says what differs for a stage.

    `max_jobs`: of one command, running at a time. `max_requeues`: how often a job may start again by itself (time limit,
    preemption, node lost); 0: never. `options`: anything else that sbatch knows, over what is ours; false leaves ours out.
    """

    name: str
    path: str
    kind: Literal["local", "slurm"]
    stages: dict[StageName, Request] = {}
    setup: list[str] = []
    max_jobs: Positive | None = None
    max_requeues: Annotated[int, Field(ge=0)] = 100
    options: dict[str, str | int | bool] = {}

    @model_validator(mode="after")
    def _options_are_no_fields(self) -> Cluster:
        for option in self.options:
            name = option.replace("_", "-")
            if name in FIELDS:
                raise ValueError(f"options: {option} has a field of its own here: {FIELDS[name]}")
            if name in OURS:
                raise ValueError(f"options: {option} belongs to the suite, which finds its jobs by it")
        return self

    def request(self, stage: str, scale: str) -> Request:
        """The stage's resources: the file's, over them its `stages`; as many tasks as the scale has GPUs for the stage.

        ConfigError where tasks and nodes do not come out even, or the stage takes one process only.
        """
        for_stage = self.stages.get(stage, Request())  # type: ignore[call-overload]
        own = {key: getattr(self, key) for key in Request.model_fields} | for_stage.model_dump(exclude_unset=True)
        if stage not in RANKED and not for_stage.model_fields_set & {"nodes", "tasks_per_node"}:
            own |= {"nodes": 1, "tasks_per_node": 1}  # what the file says of all stages is meant for those that can
        nodes, tasks = own["nodes"], own["tasks_per_node"]
        if nodes is None or tasks is None:
            printed = int(overlay("scales", scale).get("gpus", {}).get(stage, 1))
            wanted = printed if own["gpus_per_task"] else tasks or nodes or 1
            nodes = nodes or -(-wanted // (tasks or wanted))
            if wanted % nodes:
                raise ConfigError(
                    f"cluster {self.name}: {stage} at scale {scale} takes {wanted} GPUs, which do not divide by {nodes} nodes; "
                    f"set both nodes and tasks_per_node under stages: {stage}"
                )
            tasks = wanted // nodes
        request = Request.model_validate({**own, "nodes": nodes, "tasks_per_node": tasks})
        if stage not in RANKED and request.ranks > 1:
            raise ConfigError(
                f"cluster {self.name}: stage {stage} runs in one task, not in {request.ranks}; several: {', '.join(RANKED)}"
            )
        return request


def load(word: str | None) -> Cluster:
    """By name, by path, or (None) slurm where sbatch is found, else local. ConfigError names the valid choices."""
    word = word or ("slurm" if shutil.which("sbatch") else "local")
    names = sorted(path.stem for path in ROOT.glob("*.yaml"))
    path = ROOT / f"{word}.yaml" if word in names else Path(word)
    if not path.is_file():
        raise ConfigError(f"unknown cluster {word!r}; {nearest(word, names)}, or the path of a YAML file")
    where = word if word in names else str(path.absolute())
    try:
        cluster = Cluster.model_validate({"name": path.stem, "path": where, **read_yaml(path)})
    except ValidationError as error:
        raise ConfigError(f"{path}: {error_line(error, Cluster, hidden=('name', 'path'))}") from None
    return cluster


def needed(cluster: Cluster) -> None:
    """ConfigError where its sbatch is not here. (To plan for a cluster takes none.)"""
    if cluster.kind == "slurm" and not shutil.which("sbatch"):
        raise ConfigError(
            f"cluster {cluster.name!r} needs SLURM, and there is no sbatch on the PATH; --cluster local runs here"
        )


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
