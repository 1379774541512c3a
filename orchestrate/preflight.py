"""Checks before anything is submitted: data complete, store writable, tracking reachable."""

from __future__ import annotations

import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from jigclu.config import (
    STAGES,
    ClassifierConfig,
    ConfigError,
    DataConfig,
    DetectConfig,
    FinetuneConfig,
    PretrainConfig,
)
from jigclu.config.detection import DetectionDataConfig
from jigclu.data.catalog import check, check_whole, data_root, expected_images
from jigclu.data.sources import coco
from jigclu.files import locked
from orchestrate import mirror
from orchestrate.clusters import RANKED, Cluster, Placement
from orchestrate.planning.plan import Job, Plan

# submitit and sbatch replace %j and \\ in a log's path, MLflow's database URI ends at ? and # and decodes %20, and a list
# of job folders has one path per line.
REWRITTEN = re.compile(r"%[jtaA]|%[0-9a-fA-F]{2}|[?#\\\n\r]")
STORE_FILES = {
    *STAGES, ".mirror", ".store.json", "source", "mlflow.db", "mlflow.db.lock", "rates.jsonl", "orchestrator.log",
}  # fmt: skip
FEWEST_ITERATIONS = 5  # of a detector: with fewer, 2/3 and 8/9 of them are not two different steps inside the training
DETECTRON2 = (
    "detectron2 is not installed: `make detectron2`, or for GPUs "
    "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2` (docs/detection.md)"
)


def without_detectron2(plan: Plan, states: dict[str, str]) -> None:
    """Without Detectron2, leave its jobs out of the plan and say so in a line. Raises ConfigError if none is left."""
    detections = [job.id for job in plan.jobs.values() if job.stage == "detect" and states[job.id] != "done"]
    found = importlib.util.find_spec("detectron2") if detections else None
    if not detections or (found and found.origin):  # an empty folder of that name has no origin
        return
    tables = ", ".join(sorted({name for job_id in detections for name in plan.jobs[job_id].experiments}))
    plan.leave_out(detections)
    if not plan.jobs:
        raise ConfigError(f"{tables}: {DETECTRON2}")
    print(f"{tables}: detectors are left out, {DETECTRON2}", flush=True)


def preflight(placements: list[Placement], store: Path, cluster: Cluster) -> None:
    """Raises ConfigError, one line, for the first thing that would make the jobs fail."""
    for part in checks(placements, store, cluster):
        part()
    _check_store(store)
    mirror.prepare(store)


def checks(placements: list[Placement], store: Path, cluster: Cluster) -> Iterator[Callable[[], None]]:
    """The checks that create nothing: each raises ConfigError, one line, for what would make the jobs fail."""
    yield _check_environment
    for placement in placements:
        yield partial(check_batch_divides, placement, cluster)
    yield partial(_check_path, store)
    seen: set[DataConfig | DetectionDataConfig] = set()
    for placement in placements:
        data = placement.job.config.data
        if data not in seen:
            seen.add(data)
            yield partial(_check_data, data)
        yield partial(_check_config, placement.job)


def _check_environment() -> None:
    """Raises ConfigError for a number of threads that is none; a job would end with it before its first status."""
    for name in ("JIGCLU_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value and not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= 4096):
            raise ConfigError(f"{name} must be a whole number from 1 to 4096, not {value!r}; unset it, or set a number")


def check_batch_divides(placement: Placement, cluster: Cluster) -> None:
    """Raises ConfigError unless the ranks divide the global batch, which is the same on any number of them."""
    job, request, config = placement.job, placement.request, placement.job.config
    if cluster.kind != "slurm" or job.stage not in RANKED:
        return
    batch = config.solver.batch_size if isinstance(config, DetectConfig) else config.batch_size
    if batch % request.ranks:
        raise ConfigError(
            f"{job.name}: a batch of {batch} does not divide by {request.ranks} tasks ({request.nodes} nodes of "
            f"{request.tasks_per_node}); set nodes and tasks_per_node under stages: {job.stage} in the cluster file"
        )


def _check_data(data: DataConfig | DetectionDataConfig) -> None:
    if isinstance(data, DetectionDataConfig):
        coco.check(data, data_root())
    else:
        check(data)
        check_whole(data)


def foreign_file(store: Path) -> str:
    """The first file of a folder that is no store: it has files, none hidden, and none that a store has. "" if it is one."""
    names = {path.name for path in store.iterdir()}
    shown = {name for name in names if not name.startswith(".")}
    return "" if names & STORE_FILES else min(shown, default="")


def _check_path(store: Path) -> None:
    """Raises ConfigError if the store cannot be written to or is somebody else's folder. Creates nothing."""
    nearest = next(path for path in (store, *store.parents) if path.exists() or path.is_symlink())
    try:
        if nearest == store and (foreign := foreign_file(store)):
            raise ConfigError(
                f"{store} is no store: it has other files, such as {foreign}; set JIGCLU_STORE to a new folder"
            )
        writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK) and not os.statvfs(nearest).f_flag & 1
        reason = "" if writable else "Permission denied" if nearest.is_dir() else "Not a directory"
    except OSError as error:
        reason = str(error.strerror)
    if nearest.is_relative_to("/proc") or nearest.is_relative_to("/sys"):
        reason = "no files can be made there"
    if nearest.is_symlink() and not nearest.exists():
        reason = "File exists: a link to nothing"
    if reason:
        raise ConfigError(f"the store {store} is not writable ({reason}); set JIGCLU_STORE to a folder that is")


def _check_store(store: Path) -> None:
    if found := REWRITTEN.search(str(store)):
        raise ConfigError(
            f"the store {str(store)!r} has {found[0]!r} in its path, which SLURM, submitit or MLflow would rewrite; "
            "set JIGCLU_STORE to a path without any of ? # \\ %j %t %a %A %20 and line breaks"
        )
    try:
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = store / f".write-{uuid.uuid4().hex}"
        with locked(probe):  # locks keep two workers off one job; some shared file systems have none
            pass
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"the store {store} is not writable ({error.strerror}); set JIGCLU_STORE to a folder that is"
        ) from None
    free = os.statvfs(store)
    if free.f_bavail * free.f_frsize < 1 << 30:
        raise ConfigError(f"the store {store} has less than 1 GiB free; set JIGCLU_STORE to a folder with more")


def _check_config(job: Job) -> None:
    """Raises ConfigError if the values of the config do not fit together, or do not fit the data."""
    config = job.config
    if isinstance(config, DetectConfig):
        count = coco.expected_images(config.data, "train")
        if (iterations := config.solver.iterations(count)) < FEWEST_ITERATIONS:
            raise ConfigError(
                f"{job.name}: solver.schedule {config.solver.schedule:g} of {count} images is {iterations} "
                f"iterations of {config.solver.batch_size}; the two steps of the learning rate need at least {FEWEST_ITERATIONS}"
            )
        return
    if isinstance(config, PretrainConfig):
        try:
            config.method.check(config.batch_size, config.image_size)
        except ConfigError as error:
            raise ConfigError(f"{job.name}: {error}") from None
    if isinstance(config, ClassifierConfig) and config.crop == "padded":
        largest = config.data.canvas + 2 * config.padding
        if config.image_size > largest:
            raise ConfigError(
                f"{job.name}: crop padded takes {config.image_size} pixels of an image of at most "
                f"{largest}, padding included"
            )
    if (
        isinstance(config, PretrainConfig | FinetuneConfig)
        and (count := expected_images(config.data, "train")) < config.batch_size
    ):
        raise ConfigError(f"{job.name}: {count} images do not fill one batch of {config.batch_size}")
