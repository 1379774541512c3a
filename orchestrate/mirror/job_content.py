"""What a job folder says that its MLflow run should be. Reads files only; knows no mlflow."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigclu.job_folder import JobFolder
from orchestrate.jobs.submissions import submission
from orchestrate.mirror.address import digest
from orchestrate.mirror.store import Point

DETAILS = ("seconds", "images", "val_images", "categories", "iterations")  # of result.json, beside its metrics
RUN_STATUS = {  # KILLED: MLflow has no word for "goes on later"; it is RUNNING again when it does
    "pending": "SCHEDULED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "done": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
    "lost": "FAILED",
}
WATCHED = ("job.json", "status.json", "result.json", "metrics.jsonl")


@dataclass(frozen=True)
class JobRunSpec:
    """What the folder says that the run should be."""

    name: str
    experiment: str
    start: int
    source: str
    tags: dict[str, str]
    params: dict[str, str]
    points: list[Point]
    status: tuple[str, int | None]

    @property
    def digests(self) -> dict[str, str]:
        return {name: digest(getattr(self, name)) for name in ("tags", "params", "points", "status")}


def stamps(folder: Path) -> dict[str, str]:
    """When each mirrored file was last written: a few stat calls, no reading."""
    paths = [folder / name for name in WATCHED]
    if (folder / "figures").is_dir():
        paths += sorted(path for path in (folder / "figures").iterdir() if not path.name.startswith("."))
    found = {}
    for path in paths:
        if path.is_file():
            stat = path.stat()
            found[str(path.relative_to(folder))] = f"{stat.st_mtime_ns} {stat.st_size} {stat.st_ino}"
    return found


def run_state(status: dict[str, Any], result: dict[str, Any]) -> str:
    """A result means done, whatever status.json says."""
    return "done" if result else str(status.get("state", "pending"))


def number(value: Any) -> float | None:
    """As MLflow can hold it: infinities become NaN (its databases would store 1.8e308 and spoil every chart's axis)."""
    if not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else math.nan


def metric_name(name: str) -> str:
    """With the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w\-. /]", "_", name)


def job_run_spec(folder: Path) -> JobRunSpec:
    """The run that this job folder asks for."""
    files = JobFolder(folder)
    job, status, result = files.job, files.status, files.result
    state = run_state(status, result)
    finished = int(1000 * float(result.get("finished", 0)))
    values = {**result.get("metrics", {}), **{key: result.get(key) for key in DETAILS}}
    values |= {f"top1.lr{rate}": best["top1"] for rate, best in result.get("by_lr", {}).items()}
    points = [
        (metric_name(f"result.{name}"), known, finished, 0)
        for name, value in sorted(values.items())
        if (known := number(value)) is not None
    ]
    end = (
        finished if state == "done" else int(1000 * status.get("heartbeat", 0)) if state in ("failed", "lost") else None
    )
    upstream = ",".join(job.get("upstream", []))
    return JobRunSpec(
        name=str(job.get("name") or folder.name),
        experiment=f"jigclu-{job.get('scale', 'paper')}",
        start=_start(folder, result),
        source=f"{job.get('source_digest', '')} {job.get('data_fingerprint', '')}",
        tags=_tags(folder, job, status, result, state),
        params={**_flat(job.get("config", {})), **({"upstream": upstream} if upstream else {})},
        points=points,
        status=(RUN_STATUS.get(state, "RUNNING"), end),
    )


def _start(folder: Path, result: dict[str, Any]) -> int:
    """Unix ms: the result's finish less its seconds, else the first line's time, else when it was planned."""
    if "finished" in result and "seconds" in result:
        return int(1000 * (result["finished"] - result["seconds"]))
    first = next(JobFolder(folder).metrics(), {})
    return int(1000 * first.get("time", (folder / "job.json").stat().st_mtime))


def _tags(
    folder: Path, job: dict[str, Any], status: dict[str, Any], result: dict[str, Any], state: str
) -> dict[str, str]:
    return {
        "jigclu.job": folder.name,
        "jigclu.stage": str(job.get("stage", "")),
        "jigclu.label": str(job.get("label", "")),
        "jigclu.experiments": ",".join(job.get("experiments", [])),
        "jigclu.seed": str(job.get("seed", 0)),
        "jigclu.protocol": str(job.get("protocol", "")),
        "jigclu.scale": str(job.get("scale", "")),
        "jigclu.state": state,
        "jigclu.message": str(status.get("message") or ""),
        "jigclu.command": str(job.get("command", "")),
        "jigclu.device": str(result.get("device", "")),
        "jigclu.versions": " ".join(
            f"{name}={version}" for name, version in sorted(result.get("versions", {}).items())
        ),
        "jigclu.slurm_job_id": str(status.get("slurm_job_id") or ""),
        "jigclu.attempt": str(status.get("attempt") or ""),
        "jigclu.ranks": str(result.get("world", "")),
        "jigclu.estimated_hours": _estimated(folder),
        "jigclu.folder": f"{folder.parent.name}/{folder.name}",
        "jigclu.data_fingerprint": str(job.get("data_fingerprint", "")),
        "jigclu.source_digest": str(job.get("source_digest", "")),
        "mlflow.source.git.commit": str(job.get("commit", "")),
        "mlflow.note.content": _note(folder, job, status, state),
    }


def _estimated(folder: Path) -> str:
    """Device-hours that the job was submitted with; "" where nobody estimated."""
    hours = number(submission(JobFolder(folder)).get("estimate_hours"))
    return "" if hours is None else f"{hours:.6g}"


def _note(folder: Path, job: dict[str, Any], status: dict[str, Any], state: str) -> str:
    """What a person reads on the run's page."""
    uses = [f"{use['experiment']} {use['cell']} ({use['metric']})" for use in job.get("uses", [])]
    attempt = int(status.get("attempt") or 1)
    lines = [f"**{job.get('name', folder.name)}**: {state}{f', attempt {attempt}' if attempt > 1 else ''}"]
    if status.get("message") and state in ("failed", "interrupted", "cancelled", "lost"):
        lines.append(str(status["message"])[:2000])
    if uses:
        lines.append(f"Fills {', '.join(uses)}.")
    if job.get("upstream"):
        lines.append(f"Builds on {', '.join(f'`{job_id}`' for job_id in job['upstream'])}.")
    lines.append(f"Folder: `{folder.parent.name}/{folder.name}` in the store.")
    if job.get("command"):
        lines.append(f"Recompute: `{job['command']}`")
    if job.get("dirty"):
        lines.append("The working tree had uncommitted changes.")
    return "\n\n".join(lines)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys, JSON values; text as it is."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[metric_name(f"{prefix}{key}")] = value if isinstance(value, str) else json.dumps(value)
    return flat
