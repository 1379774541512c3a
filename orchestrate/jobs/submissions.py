"""Submissions: where a job was last sent, and the SLURM ids behind one sbatch command."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jigclu.files import (
    COUNT,
    FINITE,
    NAME,
    PID,
    POSITIVE,
    STAMP,
    TEXT,
    TEXTS,
    UnreadableFile,
    read_cache,
    read_fields,
    write_json,
)
from jigclu.job_folder import JobFolder

# One sbatch command, in <store>/.submissions/<group>/: its name, its jobs, and SLURM's id as soon as it is known.
SCRIPT = "submission.sh"  # the sbatch script of a submission
STORE_FAILED = 74  # exit status of a job that cannot write even its status (EX_IOERR)
SUBMISSION_FIELDS = {
    **dict.fromkeys(("cluster", "site", "host", "estimate_by"), TEXT),
    "group": NAME,
    **dict.fromkeys(("index", "max_requeues"), COUNT),
    "pid": PID,
    **dict.fromkeys(("ranks", "share"), POSITIVE),
    "submitted": STAMP,
    "estimate_hours": FINITE,
}
GROUP_FIELDS = {"jobs": TEXTS, "name": TEXT, "site": TEXT}
GROUP, LIST = "group.json", "jobs.txt"  # LIST: a job folder per line, in the order of the array's tasks


def submissions_folder(store: Path) -> Path:
    return store / ".submissions"


def submission(folder: JobFolder) -> dict[str, Any]:
    """Where the job was last sent: `cluster`, `submitted` (unix seconds), on SLURM `group` and `index`."""
    path = folder.path / "submission.json"
    try:
        found = read_fields(path, SUBMISSION_FIELDS)
    except UnreadableFile:
        return _from_groups(folder)
    torn = not found.keys() >= {"site", "index", "submitted"} if "group" in found else not found and path.exists()
    return _from_groups(folder) if torn else found


def _from_groups(folder: JobFolder) -> dict[str, Any]:
    """The job's last submission by the lists of submissions: without it a job in the queue would be submitted again."""
    for listing in sorted(submissions_folder(folder.store).glob(f"*/{LIST}"), reverse=True):
        jobs = _listed(listing)
        if folder.id in jobs:
            site, group = read_cache(listing.parent / GROUP).get("site", "slurm"), listing.parent.name
            submitted = listing.stat().st_mtime
            return {
                "cluster": "slurm",
                "site": site,
                "group": group,
                "index": jobs.index(folder.id),
                "submitted": submitted,
            }
    return {}


def _listed(listing: Path) -> list[str]:
    """Ids of a submission's jobs."""
    if not listing.is_file():
        return []
    return [Path(line).name for line in listing.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]


def note_submission(folder: JobFolder, **fields: Any) -> None:
    """Replace submission.json."""
    write_json(folder.path / "submission.json", fields)


def read_group(store: Path, group: str) -> dict[str, Any]:
    """The group's group.json; if that is unreadable, its jobs, so that the queue can still be searched for its script."""
    path = submissions_folder(store) / group / GROUP
    try:
        return read_fields(path, GROUP_FIELDS, ("jobs",))
    except UnreadableFile:
        return {"jobs": _listed(path.with_name(LIST))}


def note_group(store: Path, group: str, **fields: Any) -> None:
    """Merge fields into the group's group.json."""
    write_json(submissions_folder(store) / group / GROUP, {**read_group(store, group), **fields})


def slurm_id(marker: dict[str, Any], group: dict[str, Any]) -> str | None:
    """`123`, or `123_4` in an array; None if sbatch has not returned it yet.

    `marker`: submission.json; `group`: group.json.
    """
    base = group.get("slurm_id")
    return base and (f"{base}_{marker['index']}" if len(group["jobs"]) > 1 else str(base))


def current_id(folder: JobFolder) -> str | None:
    """The SLURM id under which the job was last submitted."""
    marker = submission(folder)
    name = marker.get("group")
    return slurm_id(marker, read_group(folder.store, name)) if name else None


def batch_logs(folder: JobFolder) -> list[Path]:
    """Output of the batch script, and of SLURM itself, for the job's last submission."""
    marker = submission(folder)
    if not (name := marker.get("group")):
        return []
    alone = len(read_group(folder.store, name).get("jobs", [])) == 1
    return sorted((submissions_folder(folder.store) / name).glob("*.log" if alone else f"*_{marker['index']}.log"))


def squeue_name(experiments: Iterable[str], stage: str, label: str, digest: str) -> str:
    """`jigclu:table8:pretrain:m2:ab12cd`."""
    names = sorted(experiments)
    first = names[0] if len(names) == 1 else f"{names[0]}+{len(names) - 1}"
    return f"jigclu:{first}:{stage}:{label.replace('=', '').replace(' ', '-')}:{digest[:6]}"
