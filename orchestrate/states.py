"""What a job is doing, from its folder, its lock and (on SLURM) the queue; and the folder's own record of what was asked."""

from __future__ import annotations

import fcntl
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jigclu.training.folder import JobFolder, read_json, write_json
from orchestrate.plan import Job, Plan

# new: never asked for; submitted: in SLURM's queue or starting. The others are status.json's (folder.STATES).
State = str
QUEUE_SECONDS = 2.0
_asked: tuple[float, dict[str, str]] = (-math.inf, {})  # when squeue was last asked, and what it said


def running_now(folder: JobFolder) -> bool:
    """A worker holds the job's lock: however the process that started it ended, this one lives."""
    lock = folder.path / ".run.lock"
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: a worker that finds it so tries again
        except BlockingIOError:
            return True
    return False


def submission(folder: JobFolder) -> dict[str, Any]:
    return read_json(folder.path / "submission.json")


def note_submission(folder: JobFolder, **fields: Any) -> None:
    write_json(folder.path / "submission.json", {**submission(folder), **fields})


def queue() -> dict[str, str]:
    """SLURM's jobs of this user that wait, run or are ending: id -> their sbatch file. OSError where SLURM does not answer.

    Without those whose upstream failed: SLURM ends them unstarted.
    """
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--me", "--format=%i|%r|%o"], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(str(error)) from None
    if asked.returncode:
        raise OSError(" ".join(asked.stderr.split()))
    rows = [line.split("|", 2) for line in asked.stdout.splitlines()]
    return {slurm_id: script for slurm_id, reason, script in rows if reason != "DependencyNeverSatisfied"}


def in_queue(slurm_id: str) -> bool:
    """Whether SLURM still knows the job as waiting or running. One squeue serves all jobs for a moment; a no is never stale.

    A cluster that does not answer counts as yes: never submit twice.
    """
    global _asked
    when, known = _asked
    if slurm_id not in known or time.monotonic() - when > QUEUE_SECONDS:
        try:
            _asked = time.monotonic(), queue()
        except OSError:
            return True
    return slurm_id in _asked[1]


def state_of(folder: JobFolder) -> State:
    """done, running, submitted, failed, interrupted or new."""
    if folder.done:
        return "done"
    if running_now(folder):
        return "running"
    asked = submission(folder)
    if asked.get("slurm_id") and in_queue(str(asked["slurm_id"])):
        return "submitted"
    if (folder.path / "result.json").exists():  # it ended while we asked
        return "done"
    said = str(folder.status.get("state", "new"))
    # A job that says it runs, with nobody holding its lock, was killed: it goes on from its last checkpoint.
    return "interrupted" if said == "running" else "new" if said == "pending" else said


def stale(job: Job, folder: JobFolder, digests: dict[str, str]) -> bool:
    """Whether a finished job was made by other code than the tree's."""
    return folder.done and folder.job.get("source_digest") not in (None, digests[job.stage])


def write_jobs(plan: Plan, store: Path) -> None:
    """Make every job's folder and write what the job is; experiments and uses of earlier plans are kept."""
    changed = [_write_job(plan, job, store) for job in plan.jobs.values()]
    if any(changed):
        _take_over(plan, store)


def _write_job(plan: Plan, job: Job, store: Path) -> bool:
    """Whether job.json changed. What made a finished result is not rewritten, only who uses it."""
    folder = job.folder(store).create()
    ours = [vars(use) for use in job.uses]
    content = {
        "id": job.id, "stage": job.stage, "name": job.name, "config": job.config.model_dump(mode="json"),
        "upstream": list(job.upstream), "seed": job.seed, "command": command(plan),
    }  # fmt: skip

    def change(known: dict[str, Any]) -> dict[str, Any]:
        uses = [*known.get("uses", []), *(use for use in ours if use not in known.get("uses", []))]
        return {
            "scale": plan.scale, "protocol": plan.protocol, **known, **({} if folder.done else content),
            "experiments": sorted({*known.get("experiments", []), *job.experiments}),
            "uses": sorted(uses, key=lambda use: sorted(use.items())),
        }  # fmt: skip

    changed = folder.edit_job(change)
    if not folder.status:
        folder.set_status("pending", message="waits for its turn")
    return changed


def _take_over(plan: Plan, store: Path) -> None:
    """A cell has one job a seed: one that filled it before the recipe changed does so no longer."""
    filler = {(job.seed, *sorted(vars(use).items())): job.id for job in plan.jobs.values() for use in job.uses}
    for stage in {job.stage for job in plan.jobs.values()}:
        for path in (store / stage).glob("*/job.json"):
            folder = JobFolder(path.parent)

            def kept(known: dict[str, Any], own: str = folder.id) -> dict[str, Any]:
                asked = [(use, (known.get("seed"), *sorted(use.items()))) for use in known.get("uses", [])]
                return {**known, "uses": [use for use, key in asked if filler.get(key, own) == own]}

            folder.edit_job(kept)


def command(plan: Plan) -> str:
    """The command line that computes the plan's cells anew (where they are not in the store)."""
    words = [
        "python",
        "orchestrate/run.py",
        *(experiment.name for experiment in plan.experiments),
        "--scale",
        plan.scale,
    ]
    words += ["--protocol", plan.protocol]
    words += ["--seeds", str(plan.seeds)] if plan.seeds > 1 else []
    for setting in plan.settings:
        words += ["--set", setting]
    words += ["--cells", *plan.only] if plan.only else []
    return shlex.join(words)


def say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
