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
from orchestrate.source import STAGE_MODULES, provenance


def run_job(folder: str) -> None:
    """Run the stage that job.json names. A finished job returns at once, one that is running elsewhere is left alone.

    A stop signal ends in state `interrupted`, requeued where SLURM sent it; an error ends in state `failed` with its line.
    On SLURM the exit code is 0 only where the job is done: jobs that wait for it go by that.
    """
    interrupt.install()  # after submitit's own handlers, which save in the handler and on rank 0 alone
    job = JobFolder(folder)
    if job.done:
        return
    rank = _join_ranks()
    # Ranks past the first keep one another out of nothing; whoever only asks whether the job runs holds the lock for a moment.
    with locked(job.path / f".run{rank or ''}.lock", wait=False, patience=3) as mine:
        if not mine:
            print(f"{job.id} is running elsewhere: nothing to do here", flush=True)
            if _on_slurm():
                raise SystemExit(1)
            return
        _run(job, rank)


def _join_ranks() -> int:
    """Rank of this task; torchrun's variables are set from SLURM's where there are several tasks."""
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    return int(os.environ.get("RANK", 0))


def _run(job: JobFolder, rank: int) -> None:
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    values = job.job
    mirror = SideMirror(job.path)
    if rank == 0:
        root = Path(__file__).resolve().parent.parent
        made_by = provenance(values["stage"], root)
        sources = values.get("sources", [])  # of every attempt whose code differed from the one before
        sources = sources if made_by["source_digest"] in sources[-1:] else [*sources, made_by["source_digest"]]
        job.update_job(**made_by, sources=sources)
        (job.path / "source").unlink(missing_ok=True)
        (job.path / "source").symlink_to(os.path.relpath(root, job.path))
        job.set_status("running", started=time.time(), message="starting")
        mirror.start()
    try:
        stage = importlib.import_module(STAGE_MODULES[values["stage"]])
        stage.run(parse(values["stage"], values["config"]), job.path)
    except interrupt.Interrupted as stopped:
        print(stopped, flush=True)
        if rank == 0 and _on_slurm():
            _requeue(os.environ["SLURM_JOB_ID"])
            raise SystemExit(1) from None
    except Exception as error:
        if rank == 0:
            name = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            job.set_status("failed", message=f"{name}{' '.join(str(error).split())}"[:500])
        traceback.print_exc()
        raise
    finally:
        mirror.stop()


def _on_slurm() -> bool:
    """Not SLURM_JOB_ID: an orchestrator in somebody's salloc starts local jobs, and that allocation is not theirs to requeue."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _requeue(slurm_id: str) -> None:
    """Have SLURM start this job again, unless someone has cancelled it.

    The time limit's and preemption's warnings come to a running job; scancel's signal comes to one that is ending, and
    `scontrol requeue` would bring that one back.
    """

    def scontrol(*words: str) -> str:
        return subprocess.run(
            ["scontrol", *words, slurm_id], check=True, capture_output=True, text=True, timeout=60
        ).stdout

    try:
        if "JobState=RUNNING" in scontrol("show", "job"):
            scontrol("requeue")
            print("requeued", flush=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"not requeued: {' '.join(str(getattr(error, 'stderr', None) or error).split())}", flush=True)
