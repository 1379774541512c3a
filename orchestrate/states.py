"""What a job is doing, from its folder, its lock and (on SLURM) the queue; and the folder's own record of what was asked."""

from __future__ import annotations

import fcntl
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from jigclu.training.folder import JobFolder, read_json, write_json
from orchestrate.plan import Job, Plan
from orchestrate.source import commit

# new: never asked for; submitted: in SLURM's queue or starting. The others are status.json's (folder.STATES).
State = str


def running_now(folder: JobFolder) -> bool:
    """A worker holds the job's lock: however the process that started it ended, this one lives."""
    lock = folder.path / ".run.lock"
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def submission(folder: JobFolder) -> dict[str, Any]:
    return read_json(folder.path / "submission.json")


def note_submission(folder: JobFolder, **fields: Any) -> None:
    write_json(folder.path / "submission.json", {**submission(folder), **fields})


def in_queue(slurm_id: str) -> bool:
    """Whether squeue still knows the job as waiting or running.

    A cluster that does not answer counts as yes: never submit twice.
    """
    try:
        asked = subprocess.run(["squeue", "-h", "-j", slurm_id, "-o", "%T"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return True
    if asked.returncode:  # "Invalid job id specified": ended and forgotten; anything else is the controller's trouble
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())


def state_of(folder: JobFolder) -> State:
    """done, running, submitted, failed, interrupted or new."""
    if folder.done:
        return "done"
    if running_now(folder):
        return "running"
    asked = submission(folder)
    if asked.get("slurm_id") and in_queue(str(asked["slurm_id"])):
        return "submitted"
    said = str(folder.status.get("state", "new"))
    # A job that says it runs, with nobody holding its lock, was killed: it goes on from its last checkpoint.
    return "interrupted" if said == "running" else "new" if said == "pending" else said


def stale(job: Job, folder: JobFolder, digests: dict[str, str]) -> bool:
    """Whether a finished job was made by other code than the tree's."""
    return folder.done and folder.job.get("source_digest") not in (None, digests[job.stage])


def write_job(plan: Plan, job: Job, store: Path) -> JobFolder:
    """Make the job's folder and write what the job is; experiments and uses of earlier plans are kept."""
    folder = job.folder(store).create()
    known = folder.job
    uses = {tuple(sorted(use.items())) for use in known.get("uses", [])} | {
        tuple(sorted(vars(use).items())) for use in job.uses
    }
    sha, dirty = commit()
    if not folder.done:  # what made a finished result is not rewritten
        known = {
            **known, "id": job.id, "stage": job.stage, "name": job.name, "config": job.config.model_dump(mode="json"),
            "upstream": list(job.upstream), "seed": job.seed, "commit": sha, "dirty": dirty, "command": command(plan),
            "scale": known.get("scale", plan.scale), "protocol": known.get("protocol", plan.protocol),
        }  # fmt: skip
    merged = {
        **known,
        "experiments": sorted({*known.get("experiments", []), *job.experiments}),
        "uses": [dict(use) for use in sorted(uses)],
    }
    if merged != folder.job:
        folder.update_job(**merged)
        _take_over(job, folder, merged["uses"])
    if not folder.status:
        folder.set_status("pending", message="waits for its turn")
    return folder


def _take_over(job: Job, folder: JobFolder, uses: list[dict[str, Any]]) -> None:
    """A cell has one job a seed: one that filled it before the recipe changed does so no longer."""
    for path in folder.path.parent.glob("*/job.json"):
        other = JobFolder(path.parent)
        values = other.job
        if other.id != job.id and values.get("seed") == job.seed:
            kept = [use for use in values.get("uses", []) if use not in uses]
            if kept != values.get("uses", []):
                other.update_job(uses=kept)


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
    return shlex.join(words)


def say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
