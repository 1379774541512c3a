"""What stands in a job folder of plan and submission: job.json's part that planning writes, and submission.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, parse
from jigclu.job_folder import JobFolder
from orchestrate.planning.plan import Job, Plan, Use


# -- what the job is -----------------------------------------------------------------------------------------------------------
def plan_of(folders: Iterable[JobFolder]) -> Plan:
    """The jobs of these folders as a plan, upstream first. ConfigError where a folder's job is no longer what its id says."""
    plan = Plan({}, [], "", "", "", 1)
    for folder in sorted(folders, key=lambda one: len(one.job.get("upstream", []))):
        known = folder.job
        job = Job(
            known["stage"], parse(known["stage"], known["config"]), tuple(known["upstream"]), known["seed"],
            known.get("label", ""), known["scale"], known["protocol"], set(known["experiments"]),
            {Use(**use) for use in known["uses"]},
        )  # fmt: skip
        if job.id != folder.id:
            raise ConfigError(f"job {folder.id} was planned by other code; run its command: {known.get('command', '')}")
        plan.jobs[job.id] = job
    return plan


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
        "upstream": list(job.upstream), "seed": job.seed, "label": job.label, "command": plan.command,
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
