"""What stands in a job folder of plan and submission: job.json's part that planning writes, and submission.json."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, parse
from jigclu.training.folder import JobFolder, read_json, write_json
from orchestrate.plan import Job, Plan, Use

GROUP = "group.json"  # of one sbatch command, in <store>/.submissions/<group>/: its name, its jobs, and SLURM's id once it is known


def say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)


# -- what was asked of a cluster -----------------------------------------------------------------------------------------------
def submissions(store: Path) -> Path:
    return store / ".submissions"


def submission(folder: JobFolder) -> dict[str, Any]:
    """Where the job was last sent: `cluster` local or slurm, `submitted` (unix seconds); on SLURM `group` and `index` in it."""
    return read_json(folder.path / "submission.json")


def note_submission(folder: JobFolder, **fields: Any) -> None:
    """Replace submission.json."""
    write_json(folder.path / "submission.json", fields)


def group(store: Path, name: str) -> dict[str, Any]:
    return read_json(submissions(store) / name / GROUP)


def note_group(store: Path, called: str, **fields: Any) -> None:
    write_json(submissions(store) / called / GROUP, {**group(store, called), **fields})


def slurm_id(asked: dict[str, Any], of: dict[str, Any]) -> str | None:
    """`123`, or `123_4` in an array; None where sbatch has not said it yet. `asked`: submission.json; `of`: its group.json."""
    base = of.get("slurm_id")
    return base and (f"{base}_{asked['index']}" if len(of["jobs"]) > 1 else str(base))


def current_id(folder: JobFolder) -> str | None:
    """The SLURM id under which the job was last submitted."""
    marker = submission(folder)
    name = marker.get("group")
    return slurm_id(marker, group(folder.store, name)) if name else None


def batch_logs(folder: JobFolder) -> list[Path]:
    """What the batch script, and SLURM itself, said of the job's last submission."""
    marker = submission(folder)
    if not (name := marker.get("group")):
        return []
    alone = len(group(folder.store, name).get("jobs", [])) == 1
    return sorted((submissions(folder.store) / name).glob("*.log" if alone else f"*_{marker['index']}.log"))


def squeue_name(experiments: Iterable[str], stage: str, what: str, digest: str) -> str:
    """`jigclu:table8:pretrain:m2:ab12cd`."""
    named = sorted(experiments)
    first = named[0] if len(named) == 1 else f"{named[0]}+{len(named) - 1}"
    return f"jigclu:{first}:{stage}:{what.replace('=', '').replace(' ', '-')}:{digest[:6]}"


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
        "upstream": list(job.upstream), "seed": job.seed, "label": job.label, "command": command(plan),
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
