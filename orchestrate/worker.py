"""What submitit runs: one job, from its folder alone. Idempotent, so the first pickle serves every attempt."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, parse
from jigclu.files import locked
from jigclu.job_folder import JobFolder, slurm_job_id
from jigclu.training import interrupt
from orchestrate.cost import measured
from orchestrate.jobs.snapshot import STAGE_MODULES, provenance
from orchestrate.jobs.submissions import squeue_name, submission
from orchestrate.mirror import SideMirror

STORE_FAILED = 74  # exit code where not even the status can be written (EX_IOERR); orchestrate.states reads it
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LEASE_SECONDS = 150  # a network file system gives up a lost node's locks after its lease, 90 s by default


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
    restarted = _on_slurm() and int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
    try:
        # Ranks past the first keep one another out of nothing; whoever only asks whether the job runs holds the lock for a moment.
        lock = locked(job.path / f".run{rank or ''}.lock", wait=False, patience=LEASE_SECONDS if restarted else 3)
        with lock as mine:
            if mine:
                _run(job, rank)
                return
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        print(f"the store cannot be written: {error}", flush=True)
        raise SystemExit(STORE_FAILED) from None
    print(f"{job.id} is running elsewhere: nothing to do here", flush=True)
    if _on_slurm():
        raise SystemExit(1)


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
    mirror = SideMirror(job.path)
    if rank == 0:
        _begin(job)
        mirror.start()
    try:
        values = job.job
        stage = importlib.import_module(STAGE_MODULES[values["stage"]])
        stage.run(parse(values["stage"], values["config"]), job.path)
        if rank == 0:
            _note_rate(job)
    except interrupt.Interrupted as stopped:
        print(stopped, flush=True)
        if rank == 0 and _on_slurm():
            _start_again(job, str(stopped))
            raise SystemExit(1) from None
    except Exception as error:
        if rank == 0 and not job.done:
            job.set_status("failed", message=_told(error, job))
        traceback.print_exc()
        raise
    finally:
        mirror.stop()


def _note_rate(job: JobFolder) -> None:
    try:
        measured.note_finished(job)
    except Exception as error:  # the result is there: what is kept for later estimates must not fail the job
        logging.getLogger(__name__).warning("its time was not kept: %s", error)


def _told(error: Exception, job: JobFolder) -> str:
    name = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        name = f"the store {job.store} is full or read-only: "
    return f"{name}{' '.join(str(error).split())}"[:500]


def _begin(job: JobFolder) -> None:
    """Write down by what code the job runs, and this attempt; SystemExit where starting again is of no use."""
    root = Path(__file__).resolve().parent.parent
    values = job.job
    made_by = provenance(values["stage"], root)
    sources = values.get("sources", [])  # of every attempt whose code differed from the one before
    sources = sources if made_by["source_digest"] in sources[-1:] else [*sources, made_by["source_digest"]]
    job.update_job(**made_by, sources=sources)
    (job.path / "source").unlink(missing_ok=True)
    (job.path / "source").symlink_to(os.path.relpath(root, job.path.resolve()))
    status = job.status
    here = {
        "slurm_job_id": slurm_job_id(),
        "step": _saved_step(job),
        "began": time.time(),
        "host": socket.gethostname(),
    }
    attempts = [*status.get("attempts", []), here]
    if _on_slurm() and (why := no_use(attempts, submission(job).get("max_requeues"))):
        job.set_status("failed", message=why)
        print(why, flush=True)
        raise SystemExit(1)
    job.set_status("running", started=time.time(), message="starting", attempts=attempts)
    if "SLURM_ARRAY_JOB_ID" in os.environ and _on_slurm():
        name = squeue_name(values["experiments"], values["stage"], values.get("label", ""), job.id)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _scontrol("update", f"JobId={slurm_job_id()}", f"JobName={name}")


def _saved_step(job: JobFolder) -> int:
    """The step of the newest checkpoint, by its name; 0 before there is one."""
    return max(
        (int(path.stem.removeprefix("step-")) for path in (job.path / "checkpoint").glob("step-*.pt")), default=0
    )


def no_use(attempts: list[dict[str, Any]], max_requeues: int | None) -> str:
    """Why the last of these attempts had better not run; "" where it may. Only those of the same submission count."""
    same = [one for one in attempts if one["slurm_job_id"] == attempts[-1]["slurm_job_id"]]
    step = same[-1]["step"]
    if len(same) > 2 and same[-2]["step"] == same[-3]["step"] == step:
        return (
            f"no progress in two attempts: both began at step {step} and saved no later one. A longer time limit (minutes in the "
            "cluster file) may help; retry starts again from there"
        )
    if max_requeues is not None and len(same) - 1 > max_requeues:
        return (
            f"started again {max_requeues} times, the most that the cluster file allows (max_requeues); at step {step}"
        )
    return ""


def _on_slurm() -> bool:
    """Not SLURM_JOB_ID: an orchestrator in somebody's salloc starts local jobs, and that allocation is not theirs to requeue."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True, timeout=60).stdout


def _start_again(job: JobFolder, stopped: str) -> None:
    """Have SLURM start this job again, unless someone has cancelled it or it was started often enough.

    The time limit's and preemption's warnings come to a running job; scancel's signal comes to one that is ending, and
    `scontrol requeue` would bring that one back. In an array the task is named as such: the number of its last one is the array's.
    """
    most = submission(job).get("max_requeues")
    if most is not None and int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= most:
        why = f"not started again: max_requeues of the cluster file is {most}"
        job.set_status("interrupted", message=f"{stopped}; {why}")
        print(why, flush=True)
        return
    try:
        if "JobState=RUNNING" in _scontrol("show", "job", str(slurm_job_id())):
            _scontrol("requeue", str(slurm_job_id()))
            print("requeued", flush=True)
    except (OSError, subprocess.SubprocessError) as error:
        why = f"not requeued: {' '.join(str(getattr(error, 'stderr', None) or error).split())}"
        job.set_status("interrupted", message=f"{stopped}; {why}")
        print(why, flush=True)
