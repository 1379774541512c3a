"""Where jobs run: clusters/*.yaml or the user's own file, strictly read; and what each job requests there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from jigclu.config import ConfigError, StageName, error_line, nearest
from jigclu.config.base import Integer, Real, Size
from jigclu.job_folder import JobFolder
from orchestrate.planning.overlays import overlay, read_yaml
from orchestrate.planning.plan import Job

PATIENCE = 30.0  # seconds for nvidia-smi
ROOT = Path(__file__).parent / "clusters"
RANKED = ("detect", "finetune", "pretrain")  # stages that can use several ranks; a frozen encoder is evaluated by one
FIELDS = {  # sbatch options that have a field here: what is checked before submission must be what is submitted
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node", "ntasks": "tasks_per_node", "cpus-per-task": "cpus_per_task", "mem": "mem_gb",
    "time": "minutes", "gpus-per-task": "gpus_per_task", "requeue": "max_requeues", "no-requeue": "max_requeues",
}  # fmt: skip
OPTION = re.compile("[a-z][a-z0-9]+(-[a-z0-9]+)*")
# sbatch options that the suite sets itself.
RESERVED = (
    "array", "clusters", "dependency", "error", "job-name", "kill-on-invalid-dep", "output", "parsable", "test-only", "wrap",
)  # fmt: skip
Tasks = Annotated[Integer, Field(gt=0, le=4096)]
Minutes = Annotated[Integer, Field(gt=0, le=525_600)]  # a year
Word = Annotated[str, AfterValidator(lambda text: _one_line(text))]  # of sbatch's command line
Option = Annotated[
    str | int | bool, AfterValidator(lambda value: _one_line(value) if isinstance(value, str) else value)
]
Line = Annotated[str, AfterValidator(lambda text: _shell(text))]  # of the job's script


def _one_line(text: str) -> str:
    """A line break would start a line of its own in the script; an empty text is an option without a value."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"a text of one line is expected, or null for the site's default (got {text!r})")
    return text


def _shell(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"a line of shell is expected (got {text!r})")
    return text


class Request(BaseModel):
    """What a job requests from sbatch. `None`: the site's default (nodes and tasks: the scale's number of GPUs)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    nodes: Size | None = None
    tasks_per_node: Tasks | None = None
    gpus_per_task: Annotated[Integer, Field(ge=0, le=1)] = 1
    gpu_type: Word | None = None  # as the site calls it: a100
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    cpus_per_task: Tasks = 8
    mem_gb: Annotated[Real, Field(gt=0, le=100_000)] | None = None  # per node
    minutes: Minutes = 24 * 60

    @property
    def ranks(self) -> int:
        return (self.nodes or 1) * (self.tasks_per_node or 1)


class Cluster(Request):
    """A cluster file. `stages`: the fields that differ for a stage.

    `max_jobs`: jobs of one command that run at the same time. `max_requeues`: how often a job may restart automatically
    (time limit, preemption, lost node); 0: never. `options`: other options of sbatch, over the suite's; false removes
    the suite's.
    """

    name: str
    path: str
    kind: Literal["local", "slurm"]
    stages: dict[StageName, Request] = {}
    setup: list[Line] = []
    max_jobs: Size | None = None
    max_requeues: Annotated[Integer, Field(ge=0, le=100_000)] = 100
    options: dict[str, Option] = {}

    @model_validator(mode="after")
    def _local_requests_nothing(self) -> Cluster:
        if self.kind == "local" and (ignored := sorted(self.model_fields_set - {"name", "path", "kind"})):
            raise ValueError(
                f"{ignored[0]} is for SLURM; kind: local takes no other key (--jobs sets how many jobs run at once)"
            )
        return self

    @model_validator(mode="after")
    def _options_are_no_fields(self) -> Cluster:
        for option in self.options:
            name = option.replace("_", "-")
            if not OPTION.fullmatch(name):
                raise ValueError(f"options: {option!r} is no long name of an sbatch option, as in exclusive: true")
            if name in FIELDS:
                raise ValueError(f"options: {option} has a field of its own here: {FIELDS[name]}")
            if name in RESERVED:
                raise ValueError(f"options: {option} is reserved: the suite finds its jobs by it")
            if name != "gpus" and (
                full := next((known for known in (*FIELDS, *RESERVED) if known.startswith(name)), "")
            ):
                raise ValueError(f"options: {option} would be read as {full}; write the option's whole name")
        return self

    def request(self, stage: str, scale: str) -> Request:
        """The stage's resources: the file's fields, then its `stages`; one task per GPU of the scale.

        Raises ConfigError if the tasks do not divide by the nodes, or if a stage that runs in one task gets several.
        """
        for_stage = self.stages.get(stage, Request())  # type: ignore[call-overload]
        own = {key: getattr(self, key) for key in Request.model_fields} | for_stage.model_dump(exclude_unset=True)
        if stage not in RANKED and not for_stage.model_fields_set & {"nodes", "tasks_per_node"}:
            own |= {"nodes": 1, "tasks_per_node": 1}  # the file's general fields are for the stages that can use them
        nodes, tasks = own["nodes"], own["tasks_per_node"]
        if nodes is None or tasks is None:
            printed = int(overlay("scales", scale).get("gpus", {}).get(stage, 1))
            wanted = printed if own["gpus_per_task"] else tasks or nodes or 1
            nodes = nodes or -(-wanted // (tasks or wanted))
            if wanted % nodes:
                raise ConfigError(
                    f"cluster {self.name}: {stage} at scale {scale} uses {wanted} GPUs, "
                    f"which do not divide by {nodes} nodes; set both nodes and tasks_per_node under stages: {stage}"
                )
            tasks = wanted // nodes
        request = Request.model_validate({**own, "nodes": nodes, "tasks_per_node": tasks})
        if stage not in RANKED and request.ranks > 1:
            raise ConfigError(
                f"cluster {self.name}: stage {stage} runs in one task, not in {request.ranks}; "
                f"stages with several: {', '.join(RANKED)}"
            )
        return request


@dataclass(frozen=True)
class Placement:
    """A job with its folder in the store and its request on the cluster, resolved once and handed down."""

    job: Job
    folder: JobFolder
    request: Request


def place_jobs(jobs: Iterable[Job], store: Path, cluster: Cluster) -> dict[str, Placement]:
    """Placements by job id, in the order of the jobs. Raises ConfigError as `Cluster.request` does."""
    requests: dict[tuple[str, str], Request] = {}
    placements = {}
    for job in jobs:
        key = job.stage, job.scale
        requests[key] = requests.get(key) or cluster.request(*key)
        placements[job.id] = Placement(job, job.folder(store), requests[key])
    return placements


def load(word: str | None) -> Cluster:
    """A cluster by name or path; None: slurm if sbatch is found, else local. Raises ConfigError for any other."""
    if word is not None and not word.strip():
        raise ConfigError("--cluster is empty; write local, slurm, or the path of a YAML file")
    word = word or ("slurm" if shutil.which("sbatch") else "local")
    names = sorted(path.stem for path in ROOT.glob("*.yaml"))
    path = ROOT / f"{word}.yaml" if word in names else Path(word)
    if not path.exists():
        if path.suffix in (".yaml", ".yml") or path.parent != Path("."):
            raise ConfigError(f"cluster file {word}: there is no such file")
        raise ConfigError(f"unknown cluster {word!r}; {nearest(word, names, ', or the path of a YAML file')}")
    if not path.is_file():
        raise ConfigError(f"cluster {word}: a YAML file is expected, and this is none")
    where = word if word in names else str(path.absolute())
    try:
        values = read_yaml(path)
        if own := [key for key in ("name", "path") if key in values]:
            raise ConfigError(f"{path}: unknown key {own[0]}: a cluster is named after its file")
        cluster = Cluster.model_validate({"name": path.stem, "path": where, **values})
    except ValidationError as error:
        raise ConfigError(f"{path}: {error_line(error, Cluster, hidden=('name', 'path'))}") from None
    return cluster


def require_sbatch(cluster: Cluster) -> None:
    """Raises ConfigError for a SLURM cluster without sbatch on this machine. (Planning for it needs none.)"""
    if cluster.kind == "slurm" and not shutil.which("sbatch"):
        raise ConfigError(
            f"cluster {cluster.name!r} needs SLURM, and there is no sbatch on the PATH; --cluster local runs here"
        )


def visible_gpus() -> list[int]:
    """Indices of this machine's GPUs that CUDA_VISIBLE_DEVICES allows, without importing torch.

    Raises ConfigError for GPUs named otherwise (UUIDs, MIG slices): submitit's local executor takes indices.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        words = [word.strip() for word in visible.split(",") if word.strip()]
        if odd := [word for word in words if not re.fullmatch("-?[0-9]+", word)]:
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES names {odd[0]!r}; name GPUs by index, as nvidia-smi -L numbers them"
            )
        return list(dict.fromkeys(int(word) for word in words if int(word) >= 0))
    return list(range(machine_gpus()))


def machine_gpus() -> int:
    """How many GPUs this machine has, whichever of them CUDA_VISIBLE_DEVICES allows. Raises ConfigError without an answer."""
    if not shutil.which("nvidia-smi"):
        return 0
    command = ["nvidia-smi", "-L"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE).stdout
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"nvidia-smi does not answer within {PATIENCE:g} s: a GPU may be lost; CUDA_VISIBLE_DEVICES= runs without GPUs"
        ) from None
    return sum(line.startswith("GPU ") for line in listing.splitlines())
