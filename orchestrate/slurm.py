"""Jobs on SLURM: one sbatch job a job through submitit, upstream by afterok. Fire and forget, or --wait."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError
from jigclu.training.folder import locked
from orchestrate.clusters import Cluster, slurm_executor
from orchestrate.experiments import overlay
from orchestrate.local import progress
from orchestrate.plan import Job, Plan
from orchestrate.source import freeze
from orchestrate.states import note_submission, say, state_of, submission, write_job
from orchestrate.worker import run_job


def submit(plan: Plan, store: Path, cluster: Cluster) -> dict[str, str]:
    """Submit what is neither done nor in the queue; returns SLURM ids by job id. ConfigError carries sbatch's own message."""
    tree = freeze(store)
    ids: dict[str, str] = {}
    with locked(store / ".submit.lock"):
        for job in plan.jobs.values():
            folder = job.folder(store)
            state = state_of(folder)
            if state == "done":
                continue
            if state in ("running", "submitted"):
                ids[job.id] = str(submission(folder).get("slurm_id", ""))
                continue
            ids[job.id] = _submit_one(plan, job, store, cluster, tree, [ids[up] for up in job.upstream if ids.get(up)])
            say(f"submitted {ids[job.id]:>8s}  {job.id}  {job.name}")
    return ids


def _submit_one(plan: Plan, job: Job, store: Path, cluster: Cluster, tree: Path, after: list[str]) -> str:
    folder = write_job(plan, job, store)
    # The marker comes before sbatch, the id after: a crash between them leaves a name to look up, never a second job.
    name = f"jigclu:{sorted(job.experiments)[0]}:{job.stage}:{job.label.replace(' ', '-')}:{job.id[:6]}"
    if found := _find(name, submission(folder)):
        note_submission(folder, slurm_id=found)
        return found
    note_submission(folder, cluster=cluster.name, slurm_name=name, slurm_id=None, submitted=time.time())
    gpus = int(overlay("scales", plan.scale).get("gpus", {}).get(job.stage, 1))
    executor = slurm_executor(cluster, folder.path / "logs", name, tree, gpus, after)
    try:
        handle: Any = executor.submit(run_job, str(folder.path))
    except Exception as error:  # submitit's FailedJobError and what lies under it
        raise ConfigError(f"sbatch refused {job.name}: {_sbatch_message(error)}") from None
    note_submission(folder, slurm_id=handle.job_id)
    return str(handle.job_id)


def _find(name: str, marker: dict[str, Any]) -> str | None:
    """The SLURM id of a job that was asked for by that name, where its id was not noted."""
    if marker.get("slurm_name") != name or marker.get("slurm_id"):
        return None
    asked = subprocess.run(["squeue", "-h", "--me", "-n", name, "-o", "%i"], capture_output=True, text=True, timeout=60)
    return asked.stdout.split()[0] if asked.stdout.split() else None


def _sbatch_message(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        stderr = getattr(cause, "stderr", None)
        if stderr:
            return " ".join((stderr.decode() if isinstance(stderr, bytes) else str(stderr)).split())
        cause = cause.__cause__ or cause.__context__
    lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
    return " ".join(lines) or " ".join(str(error).split())[:300]


def wait(plan: Plan, store: Path, poll_seconds: float = 5.0) -> int:
    """Follow the plan's jobs until none can go on. 0: all done; 1: some failed. Ctrl-C leaves them to SLURM."""
    told: dict[str, str] = {}
    while True:
        states = {job.id: state_of(job.folder(store)) for job in plan.jobs.values()}
        for job in plan.jobs.values():
            state = states[job.id]
            if told.get(job.id) != state:
                told[job.id] = state
                more = progress(job.folder(store).status) if state == "running" else ""
                say(f"{time.strftime('%H:%M:%S')} {state:11s} {job.id}  {job.name}  {more}")
        if not any(state in ("submitted", "running") for state in states.values()):
            return 0 if all(state == "done" for state in states.values()) else 1
        time.sleep(poll_seconds)
