"""Jobs on SLURM: one sbatch job a job through submitit, upstream by afterok. Fire and forget, or --wait."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError
from jigclu.training.folder import JobFolder, locked
from orchestrate.clusters import Cluster, slurm_executor
from orchestrate.experiments import overlay
from orchestrate.local import mirroring, progress
from orchestrate.plan import Job, Plan
from orchestrate.source import freeze
from orchestrate.states import note_submission, queue, say, state_of, submission
from orchestrate.worker import run_job

ELSEWHERE = ""  # in place of a SLURM id: the job runs, but SLURM does not know it


def submit(plan: Plan, store: Path, cluster: Cluster) -> dict[str, str]:
    """Submit what is neither done nor in the queue; returns SLURM ids by job id. ConfigError carries sbatch's own message."""
    tree = freeze(store)
    ids: dict[str, str] = {}
    count: Counter[str] = Counter()
    with locked(store / ".submit.lock"):
        for job in plan.jobs.values():
            folder = job.folder(store)
            state = state_of(folder)
            if state == "done":
                count["done already"] += 1
            elif state in ("running", "submitted"):
                ids[job.id] = _slurm_id(folder)
                count["in the queue already" if ids[job.id] else "running here, without SLURM"] += 1
            elif any(ids.get(up) == ELSEWHERE for up in job.upstream):
                ids[job.id] = ELSEWHERE
                count["left out: upstream runs here, without SLURM"] += 1
            else:
                after = [ids[up] for up in job.upstream if up in ids]
                ids[job.id] = _submit_one(plan, job, store, cluster, tree, after)
                count["submitted"] += 1
                say(f"submitted {ids[job.id]:>8s}  {job.id}  {job.name}")
    say("jobs: " + ", ".join(f"{number} {what}" for what, number in count.items()))
    return ids


def _slurm_id(folder: JobFolder) -> str:
    asked = submission(folder)
    return ELSEWHERE if asked.get("cluster") == "local" else str(asked.get("slurm_id") or ELSEWHERE)


def _submit_one(plan: Plan, job: Job, store: Path, cluster: Cluster, tree: Path, after: list[str]) -> str:
    folder = job.folder(store)
    # The marker comes before sbatch, the id after: a crash between them leaves a job to look for, never a second one.
    if found := _find(folder):
        note_submission(folder, slurm_id=found)
        return found
    note_submission(folder, cluster="slurm", site=cluster.name, slurm_id=None, submitted=time.time())
    name = f"jigclu:{sorted(job.experiments)[0]}:{job.stage}:{job.label.replace(' ', '-')}:{job.id[:6]}"
    gpus = int(overlay("scales", plan.scale).get("gpus", {}).get(job.stage, 1))
    try:
        executor = slurm_executor(cluster, folder.path / "logs", name, tree, gpus, after)
        with _outside_any_job(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints sbatch's words as well
            handle: Any = executor.submit(run_job, str(folder.path))
    except Exception as error:  # submitit's FailedJobError and what lies under it
        raise ConfigError(f"sbatch refused {job.name}: {_sbatch_message(error)}") from None
    note_submission(folder, slurm_id=handle.job_id)
    return str(handle.job_id)


def _find(folder: JobFolder) -> str | None:
    """The SLURM id of the folder's job where it was asked for and the id was not noted: its sbatch file lies in the folder."""
    marker = submission(folder)
    if marker.get("cluster") != "slurm" or marker.get("slurm_id"):
        return None
    try:
        return next((slurm_id for slurm_id, script in queue().items() if folder.path in Path(script).parents), None)
    except OSError as error:
        raise ConfigError(f"SLURM does not answer, so nothing is submitted: {error}") from None


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Run from within a SLURM job, an orchestrator must not hand that job's variables down to those that it submits."""
    before = dict(os.environ)
    if "SLURM_JOB_ID" in before:
        for key in before:
            if key.startswith(("SLURM_", "SRUN_", "SUBMITIT_")) and key != "SLURM_CONF":
                del os.environ[key]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _sbatch_message(error: BaseException) -> str:
    """sbatch's own words in one line, from the CalledProcessError under submitit's error."""
    said = str(getattr(error.__cause__, "stderr", None) or error)
    lines = (line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in said.splitlines())
    return "; ".join(line for line in lines if line)


def wait(plan: Plan, store: Path, poll_seconds: float = 5.0) -> int:
    """Follow the plan's jobs until none can go on. 0: all done; 1: some failed. Ctrl-C leaves them to SLURM."""
    told: dict[str, str] = {}
    with mirroring(store):
        while True:
            states = {job.id: _followed(job.folder(store)) for job in plan.jobs.values()}
            for job in plan.jobs.values():
                state = states[job.id]
                if told.get(job.id) != state:
                    told[job.id] = state
                    status = job.folder(store).status
                    more = progress(status) if state == "running" else status.get("message", "")
                    more = (
                        "not in the queue: cancelled, or what it builds on did not finish" if state == "new" else more
                    )
                    say(f"{time.strftime('%H:%M:%S')} {state:11s} {job.id}  {job.name}  {more}".rstrip())
            if not any(state in ("submitted", "running") for state in states.values()):
                return 0 if all(state == "done" for state in states.values()) else 1
            time.sleep(poll_seconds)


def _followed(folder: JobFolder) -> str:
    """state_of; a job that died without a word (cancelled, killed, out of memory) is written down as interrupted."""
    state = state_of(folder)
    if state == "interrupted" and folder.status.get("state") == "running":
        slurm_id = _slurm_id(folder)
        folder.set_status("interrupted", slurm_job_id=slurm_id, message=f"SLURM job {slurm_id} ended without a result")
    return state
