"""The part of job.json that planning writes, and the way back: from job folders to a plan."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, parse
from jigclu.config.base import plain
from jigclu.files import UnreadableFile
from jigclu.job_folder import JobFolder
from orchestrate.console import print_line
from orchestrate.planning.plan import Job, Plan, Use


def plan_from_folders(folders: Iterable[JobFolder]) -> Plan:
    """The jobs of these folders as a plan, upstream first. ConfigError if a job's id no longer matches its config."""
    plan = Plan({}, [], "", "", "", 1)
    for folder in sorted(folders, key=lambda folder: len(folder.job.get("upstream", []))):
        values, job = folder.job, None
        with contextlib.suppress(KeyError, TypeError):  # other fields
            job = Job(
                values["stage"], parse(values["stage"], values["config"]), tuple(values["upstream"]), values["seed"],
                values.get("label", ""), values["scale"], values["protocol"], set(values["experiments"]),
                {Use(**use) for use in values["uses"]},
            )  # fmt: skip
        if job is None or job.id != folder.id:
            raise ConfigError(
                f"job {folder.id} was planned by a different code version; run its command: {values.get('command', '')}"
            )
        plan.jobs[job.id] = job
    return plan


def write_jobs(plan: Plan, store: Path) -> None:
    """Create every job's folder and write its job.json; experiments and uses of earlier plans are kept."""
    changed = [_write_job(plan, job, store) for job in plan.jobs.values()]
    if any(changed):
        _release_cells(plan, store)


def _write_job(plan: Plan, job: Job, store: Path) -> bool:
    """Whether job.json changed. For a finished job only its uses are updated, not the record of how it was made."""
    folder = job.folder(store).create()
    new_uses = [vars(use) for use in job.uses]
    content = {
        "id": job.id, "stage": job.stage, "name": job.name, "config": plain(job.config),
        "upstream": list(job.upstream), "seed": job.seed, "label": job.label, "command": plan.command,
    }  # fmt: skip

    def change(values: dict[str, Any]) -> dict[str, Any]:
        uses = [*values.get("uses", []), *(use for use in new_uses if use not in values.get("uses", []))]
        return {
            "scale": plan.scale, "protocol": plan.protocol, **values, **({} if folder.done else content),
            "experiments": sorted({*values.get("experiments", []), *job.experiments}),
            "uses": sorted(uses, key=lambda use: sorted(use.items())),
        }  # fmt: skip

    try:
        changed = folder.edit_job(change)
    except UnreadableFile as error:
        os.replace(folder.path / "job.json", folder.path / "job.json.unreadable")
        unknown = {**content, "source_digest": "unknown"} if folder.done else {}
        changed = folder.edit_job(lambda values: {**unknown, **change(values)})
        print_line(f"{error}: written again (the old one is job.json.unreadable)")
    if not folder.status:
        folder.set_status("pending", message="not started yet")
    return changed


def _release_cells(plan: Plan, store: Path) -> None:
    """A cell has one job per seed: remove the use from a job that filled the cell before the recipe changed."""
    job_of_use = {(job.seed, *sorted(vars(use).items())): job.id for job in plan.jobs.values() for use in job.uses}
    for stage in {job.stage for job in plan.jobs.values()}:
        for path in (store / stage).glob("*/job.json"):
            folder = JobFolder(path.parent)

            def without_replaced(values: dict[str, Any], own_id: str = folder.id) -> dict[str, Any]:
                uses = [(use, (values.get("seed"), *sorted(use.items()))) for use in values.get("uses", [])]
                return {**values, "uses": [use for use, key in uses if job_of_use.get(key, own_id) == own_id]}

            with contextlib.suppress(UnreadableFile):  # another plan's job: that plan's command writes the file again
                folder.edit_job(without_replaced)
