"""Before anything is submitted: data there, store writable, tracking reachable. (The config was checked by planning.)"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, DataConfig
from jigclu.data.catalog import check, check_whole, expected_images
from jigclu.patches import patch_size
from orchestrate import tracking
from orchestrate.plan import Job


def preflight(jobs: list[Job], store: Path) -> None:
    """Raises ConfigError, one line, at the first thing that would make the jobs fail."""
    _writable(store)
    seen: set[DataConfig] = set()
    for job in jobs:
        config: Any = job.config
        if config.data not in seen:
            seen.add(config.data)
            check(config.data)
            check_whole(config.data)
        _fits(job)
    tracking.prepare(store)


def _writable(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = store / f".write-{uuid.uuid4().hex}"
        probe.write_bytes(b"")
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
    method = config.method if job.stage == "pretrain" else None
    if method and method.name == "jigclu" and (patch := patch_size(config.image_size, method.m)) < 8:
        raise ConfigError(
            f"{job.name}: image_size {config.image_size} leaves patches of {patch} pixels; 8 is the least"
        )
    if method and method.name == "moco" and method.queue < config.batch_size:
        raise ConfigError(f"{job.name}: a queue of {method.queue} does not hold one batch of {config.batch_size}")
    most = config.data.canvas + 2 * getattr(config, "padding", 0)
    if getattr(config, "crop", "") == "padded" and config.image_size > most:
        raise ConfigError(
            f"{job.name}: crop padded takes {config.image_size} pixels of an image of at most {most}, padding included"
        )
    if job.stage in ("pretrain", "finetune") and (count := expected_images(config.data, "train")) < config.batch_size:
        raise ConfigError(f"{job.name}: {count} images do not fill one batch of {config.batch_size}")
