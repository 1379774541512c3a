"""The function that submitit runs: one job, from its folder alone.

It is idempotent, so one pickle serves every attempt.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import random
import re
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
from orchestrate.jobs.spent import attempt_began, closed, note_end
from orchestrate.jobs.submissions import STORE_FAILED, squeue_name, submission
from orchestrate.jobs.surroundings import without_ranks
from orchestrate.mirror import SideMirror

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LEASE_SECONDS = 150  # a network file system releases a lost node's locks when its lease ends, by default after 90 s


def run_job(folder: str) -> None:
    """Run the stage that job.json names. Does nothing if the job is done, or is running elsewhere.

    After a stop signal the state is `interrupted` (on SLURM the job is requeued); after an error it is `failed`, with a
    message. On SLURM the exit code is 0 only if the job is done, because dependent jobs start on exit code 0.
    """
    interrupt.install()  # replaces submitit's handlers, which save inside the handler and only on rank 0
    job = JobFolder(folder)
    if job.done:
        return
    rank = set_rank()
    restarted = _on_slurm() and _number("SLURM_RESTART_COUNT", 0) > 0
    try:
        # Each rank has a lock of its own. Patience: running_now() holds rank 0's lock for a moment.
        lock = locked(job.lock_path(rank), wait=False, patience=LEASE_SECONDS if restarted else 3)
        with lock as acquired:
            if acquired:
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


def set_rank() -> int:
    """Rank of this task. If SLURM runs several, torchrun's variables (RANK, WORLD_SIZE, ...) are set from SLURM's.

    Whatever the shell or the site's setup lines say about ranks does not count.
    """
    for name in os.environ.keys() - without_ranks(os.environ).keys():
        del os.environ[name]
    if not _on_slurm() or _number("SLURM_NTASKS", 1) <= 1 or not os.environ.get("SLURM_PROCID", "").isdecimal():
        return 0
    from submitit.helpers import TorchDistributedEnvironment

    # The same on every rank, and another one after a requeue. submitit's own choice may be the local port of somebody's
    # outgoing connection, which Linux takes from 32768 upwards.
    attempt = f"{os.environ.get('SLURM_JOB_ID')} {os.environ.get('SLURM_RESTART_COUNT')}"
    os.environ["MASTER_PORT"] = str(random.Random(attempt).randrange(10_000, 32_768))
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    return int(os.environ["RANK"])


def _number(name: str, default: int) -> int:
    """The number at the start of a variable such as `4` or `4(x2)`; the default if there is none."""
    found = re.match(r"\d+", os.environ.get(name, "").strip())
    return int(found[0]) if found else default


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
        if (owner := values.get("id", job.id)) != job.id:
            raise ConfigError(f"{job.path / 'job.json'} is of job {owner}: the folder was copied or renamed")
        try:
            stage = importlib.import_module(STAGE_MODULES[values["stage"]])
            stage.run(parse(values["stage"], values["config"]), job.path)
        finally:
            if rank == 0:
                with contextlib.suppress(OSError):  # a full disk: the error below says so
                    note_end(job)
        if rank == 0:
            _note_rate(job)
    except interrupt.Interrupted as stopped:
        print(stopped, flush=True)
        if rank == 0 and _on_slurm():
            _requeue(job, str(stopped))
            raise SystemExit(1) from None
    except Exception as error:
        if rank == 0 and not job.done:
            job.set_status("failed", message=_error_message(error, job))
        traceback.print_exc()
        raise
    finally:
        mirror.stop()


def _note_rate(job: JobFolder) -> None:
    try:
        measured.note_finished(job)
    except Exception as error:  # the result is written: a failure to note its rate must not fail the job
        logging.getLogger(__name__).warning("the job's time was not recorded for later estimates: %s", error)


def _error_message(error: Exception, job: JobFolder) -> str:
    prefix = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        prefix = f"the store {job.store} is full or read-only: "
    return f"{prefix}{' '.join(str(error).split())}"[:500]


def _begin(job: JobFolder) -> None:
    """Record the code version and this attempt. SystemExit if another attempt is of no use."""
    root = Path(__file__).resolve().parent.parent
    values = job.job
    version = provenance(values["stage"], root)
    sources = values.get("sources", [])  # the source digest of each attempt whose code differed from the one before
    sources = sources if version["source_digest"] in sources[-1:] else [*sources, version["source_digest"]]
    job.update_job(**version, sources=sources)
    link = job.path / "source"
    if link.is_dir() and not link.is_symlink():  # a store that was copied with its links followed
        link.rename(job.path / f"source-copied-{time.time_ns()}")
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(root, job.path.resolve()))
    status = job.status
    attempt = {
        "slurm_job_id": slurm_job_id(),
        "step": _saved_step(job),
        "began": attempt_began(),
        "host": socket.gethostname(),
    }
    attempts = [*closed(status), attempt]
    if _on_slurm() and (reason := reason_to_give_up(attempts, submission(job).get("max_requeues"))):
        job.set_status("failed", message=reason)
        print(reason, flush=True)
        raise SystemExit(1)
    job.set_status("running", started=time.time(), message="starting", attempts=attempts)
    if "SLURM_ARRAY_JOB_ID" in os.environ and _on_slurm():
        name = squeue_name(values["experiments"], values["stage"], values.get("label", ""), job.id)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _scontrol("update", f"JobId={slurm_job_id()}", f"JobName={name}")


def _saved_step(job: JobFolder) -> int:
    """The step in the newest checkpoint's name; 0 if there is none."""
    return max(
        (int(path.stem.removeprefix("step-")) for path in (job.path / "checkpoint").glob("step-*.pt")), default=0
    )


def reason_to_give_up(attempts: list[dict[str, Any]], max_requeues: int | None) -> str:
    """Why the last of these attempts should not run; "" if it should. Only attempts of the same submission count."""
    same = [attempt for attempt in attempts if attempt["slurm_job_id"] == attempts[-1]["slurm_job_id"]]
    step = same[-1]["step"]
    if len(same) > 2 and same[-2]["step"] == same[-3]["step"] == step:
        return (
            f"no progress in two attempts: both began at step {step} and saved no later one. A longer time limit "
            f"(minutes in the cluster file) may help; `retry` resumes from step {step}"
        )
    if max_requeues is not None and len(same) - 1 > max_requeues:
        return f"restarted {max_requeues} times, the most that the cluster file allows (max_requeues); at step {step}"
    return ""


def _on_slurm() -> bool:
    """Not SLURM_JOB_ID: local jobs started inside an salloc have it too, and must not requeue that allocation."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _scontrol(*words: str) -> str:
    return subprocess.run(
        ["scontrol", *words], check=True, capture_output=True, text=True, errors="replace", timeout=60
    ).stdout


def _requeue(job: JobFolder, stopped: str) -> None:
    """Have SLURM requeue this job, unless it was cancelled or has been restarted max_requeues times.

    A warning of a time limit or of preemption reaches a running job. scancel's signal reaches a job that is already
    ending, and `scontrol requeue` would start it again. An array task is named `123_4`: the plain number of the last
    task is the whole array's.
    """
    limit = submission(job).get("max_requeues")
    if limit is not None and _number("SLURM_RESTART_COUNT", 0) >= limit:
        reason = f"not restarted: max_requeues of the cluster file is {limit}"
        job.set_status("interrupted", message=f"{stopped}; {reason}")
        print(reason, flush=True)
        return
    try:
        if "JobState=RUNNING" in _scontrol("show", "job", str(slurm_job_id())):
            _scontrol("requeue", str(slurm_job_id()))
            print("requeued", flush=True)
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"not requeued: {' '.join(str(getattr(error, 'stderr', None) or error).split())}"
        job.set_status("interrupted", message=f"{stopped}; {reason}")
        print(reason, flush=True)
