"""Before anything is submitted: data there, store writable, tracking reachable. (The config was checked by planning.)"""

from __future__ import annotations

import importlib.util
import os
import uuid
from pathlib import Path
from typing import Any, cast

from jigclu.config import ConfigError, DataConfig
from jigclu.config.detection import DetectionDataConfig
from jigclu.data.catalog import check, check_whole, data_root, expected_images
from jigclu.data.sources import coco
from jigclu.files import locked
from orchestrate import mirror
from orchestrate.clusters import RANKED, Cluster
from orchestrate.planning.plan import Job, Plan

FEWEST = 5  # iterations of a detector: 2/3 and 8/9 of fewer are not two steps inside the training
DETECTRON2 = (
    "detectron2 is not installed: `make detectron2`, or for GPUs "
    "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2` (README, Detection)"
)


def without_detectron2(plan: Plan, states: dict[str, str]) -> None:
    """Where it is not installed, leave out of the plan what needs it, in a line. ConfigError where nothing else is left."""
    wanting = [job.id for job in plan.jobs.values() if job.stage == "detect" and states[job.id] != "done"]
    found = importlib.util.find_spec("detectron2") if wanting else None
    if not wanting or (found and found.origin):  # a bare folder of that name has no origin
        return
    tables = ", ".join(sorted({name for job_id in wanting for name in plan.jobs[job_id].experiments}))
    plan.leave_out(wanting)
    if not plan.jobs:
        raise ConfigError(f"{tables}: {DETECTRON2}")
    print(f"{tables}: left out, {DETECTRON2}", flush=True)


def preflight(jobs: list[Job], store: Path, cluster: Cluster) -> None:
    """Raises ConfigError, one line, at the first thing that would make the jobs fail."""
    for job in jobs:
        check_batch_divides(job, cluster)
    _writable(store)
    seen: set[DataConfig | DetectionDataConfig] = set()
    for job in jobs:
        config: Any = job.config
        if config.data not in seen:
            seen.add(config.data)
            _whole(config.data)
        _fits(job)
    mirror.prepare(store)


def check_batch_divides(job: Job, cluster: Cluster) -> None:
    """The global batch is the same on any number of ranks, so it must come out even on them."""
    if cluster.kind != "slurm" or job.stage not in RANKED:
        return
    request, config = cluster.request(job.stage, job.scale), cast(Any, job.config)
    batch = config.solver.batch_size if job.stage == "detect" else config.batch_size
    if batch % request.ranks:
        raise ConfigError(
            f"{job.name}: a batch of {batch} does not divide by {request.ranks} tasks ({request.nodes} nodes of "
            f"{request.tasks_per_node}); set nodes and tasks_per_node under stages: {job.stage} of the cluster file"
        )


def _whole(data: DataConfig | DetectionDataConfig) -> None:
    if isinstance(data, DetectionDataConfig):
        coco.check(data, data_root())
    else:
        check(data)
        check_whole(data)


def _writable(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = store / f".write-{uuid.uuid4().hex}"
        with locked(probe):  # locks keep two workers from one job: some shared file systems have none
            pass
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"the store {store} is not writable ({error.strerror}); set JIGCLU_STORE to a folder that is"
        ) from None
    free = os.statvfs(store)
    if free.f_bavail * free.f_frsize < 1 << 30:
        raise ConfigError(f"the store {store} has less than 1 GiB free; set JIGCLU_STORE to a folder with more")


def _fits(job: Job) -> None:
    config: Any = job.config
    if job.stage == "detect":
        count = coco.expected_images(config.data, "train")
        if (iterations := config.solver.iterations(count)) < FEWEST:
            raise ConfigError(
                f"{job.name}: solver.schedule {config.solver.schedule:g} of {count} images is {iterations} iterations of "
                f"{config.solver.batch_size}; at least {FEWEST} are needed for the rate's two steps"
            )
        return
    if job.stage == "pretrain":
        try:
            config.method.check(config.batch_size, config.image_size)
        except ConfigError as error:
            raise ConfigError(f"{job.name}: {error}") from None
    most = config.data.canvas + 2 * getattr(config, "padding", 0)
    if getattr(config, "crop", "") == "padded" and config.image_size > most:
        raise ConfigError(
            f"{job.name}: crop padded takes {config.image_size} pixels of an image of at most {most}, padding included"
        )
    if job.stage in ("pretrain", "finetune") and (count := expected_images(config.data, "train")) < config.batch_size:
        raise ConfigError(f"{job.name}: {count} images do not fill one batch of {config.batch_size}")
