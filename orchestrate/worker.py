"""What submitit runs: one job, from its folder alone. Idempotent, so the first pickle serves every attempt."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from jigclu.config import ConfigError, parse
from jigclu.training import interrupt
from jigclu.training.folder import JobFolder, locked
from orchestrate.mirror import SideMirror
from orchestrate.source import STAGE_MODULES, stage_digest


def run_job(folder: str) -> None:
    """Run the stage that job.json names. A finished job returns at once, one that is running elsewhere is left alone.

    A stop signal ends in state `interrupted`, requeued where SLURM asked; an error ends in state `failed` with its line.
    """
    job = JobFolder(folder)
    if job.done:
        return
    rank = _join_ranks()
    with locked(job.path / ".run.lock", wait=False) if rank == 0 else locked(job.path / f".run.{rank}.lock") as mine:
        if not mine:
            print(f"{job.id} is running elsewhere: nothing to do here")
            return
        _run(job, rank)


def _join_ranks() -> int:
    """Rank of this task; torchrun's variables are set from SLURM's where there are several tasks."""
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    return int(os.environ.get("RANK", 0))


def _run(job: JobFolder, rank: int) -> None:
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    interrupt.install()  # after submitit's own handlers, which save in the handler and on rank 0 alone
    values = job.job
    mirror = SideMirror(job.path)
    if rank == 0:
        root = Path(__file__).resolve().parent.parent
        job.update_job(source_digest=stage_digest(values["stage"], root))
        (job.path / "source").unlink(missing_ok=True)
        (job.path / "source").symlink_to(os.path.relpath(root, job.path))
        job.set_status("running", started=time.time(), message="starting")
        mirror.start()
    try:
        stage = importlib.import_module(STAGE_MODULES[values["stage"]])
        stage.run(parse(values["stage"], values["config"]), job.path)
    except interrupt.Interrupted as stopped:
        print(stopped, flush=True)
        if rank == 0:
            _requeue()
    except Exception as error:
        if rank == 0:
            name = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            job.set_status("failed", message=f"{name}{' '.join(str(error).split())}"[:500])
        traceback.print_exc()
        raise
    finally:
        mirror.stop()


def _requeue() -> None:
    """Ask SLURM to start this job again; locally the next run goes on with it."""
    if slurm_id := os.environ.get("SLURM_JOB_ID"):
        subprocess.run(["scontrol", "requeue", slurm_id], check=False, timeout=60)
