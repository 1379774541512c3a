"""Submissions: where a job was last sent, and the SLURM ids behind one sbatch command."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jigclu.files import read_json, write_json
from jigclu.job_folder import JobFolder

GROUP = "group.json"  # of one sbatch command, in <store>/.submissions/<group>/: its name, its jobs, and SLURM's id once it is known


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
