"""A job folder's content as its MLflow run should have it. Reads files only; knows no mlflow."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigclu.job_folder import STATES, JobFolder
from orchestrate.jobs.spent import hours_spent, seconds_spent
from orchestrate.jobs.submissions import submission
from orchestrate.mirror.address import digest
from orchestrate.mirror.store import Point
from orchestrate.mirror.tags import JobRecord

DETAILS = (
    "seconds",
    "images",
    "val_images",
    "categories",
    "iterations",
    "resamples",
    "lr",
)  # of result.json, beside its metrics
UNREADABLE = "unreadable"  # a cell's state: a file of its job cannot be read
RUN_STATUS = {  # MLflow has no status for an interrupted job: KILLED until it resumes, then RUNNING again
    "pending": "SCHEDULED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "done": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
    "lost": "FAILED",
    UNREADABLE: "FAILED",
}
HEADLINES = {"top1": 1, "AP": 1, "loss": 3}  # a stage's main metric -> decimals
WATCHED = ("job.json", "status.json", "result.json", "metrics.jsonl", "correct.bits", "resampled.json")


@dataclass(frozen=True)
class JobRunSpec:
    """What the run should be, by the job folder."""

    name: str
    experiment: str
    start: int  # unix ms: when the first attempt began; of a pending job, when it was planned
    started: bool  # whether `start` is known to be an attempt's
    source: str
    tags: dict[str, str]
    params: dict[str, str]
    points: list[Point]
    status: tuple[str, int | None]
    uses: list[dict[str, str]]
    seed: int

    @property
    def digests(self) -> dict[str, str]:
        return {name: digest(getattr(self, name)) for name in ("tags", "params", "points", "status")}


def stamps(folder: Path) -> dict[str, str]:
    """File -> modification time, size and inode of each mirrored file: a few stat calls, no reading."""
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
    """A whole result means done, whatever status.json says; without one the job is not done."""
    if result:
        return "done"
    state = str(status.get("state"))
    return "failed" if state == "done" else state if state in STATES else "pending"


def number(value: Any) -> float | None:
    """A number that MLflow can store: infinities become NaN (its databases would store 1.8e308, which ruins charts)."""
    if not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else math.nan


def metric_name(name: str) -> str:
    """The name with the characters that MLflow rejects replaced by underscores."""
    return re.sub(r"[^\w\-. /]", "_", name)


def stage_metric(stage: str, name: str) -> str:
    """`pretrain/loss`: MLflow's chart view has a section for each prefix, so the curves of two stages share no panel."""
    return f"{stage}/{metric_name(name)}"


def readable(value: float) -> float:
    """At most 6 significant digits (14.4 for 14.399999618); a whole number unchanged. MLflow's page shows all digits."""
    return value if not math.isfinite(value) or value == int(value) else float(f"{value:.6g}")


def job_run_spec(folder: Path) -> JobRunSpec:
    """The run that belongs to this job folder."""
    files = JobFolder(folder)
    job, status, result = files.job, files.status, files.result
    state = run_state(status, result)
    finished = int(1000 * float(result.get("finished", 0)))
    values = {**result.get("metrics", {}), **{key: result.get(key) for key in DETAILS}}
    for rate, numbers in result.get("by_lr", {}).items():
        values |= {f"{name}.lr{rate}": numbers[name] for name in ("top1", "held_out_top1") if name in numbers}
    values |= {f"half_width.{name}": value for name, value in result.get("half_widths", {}).items()}
    points = [
        (stage_metric(folder.parent.name, f"result.{name}"), readable(finite), finished, 0)
        for name, value in sorted(values.items())
        if (finite := number(value)) is not None
    ]
    ended = int(1000 * status.get("heartbeat", 0)) or None
    end = finished if state == "done" else ended if state in ("failed", "lost", "cancelled") else None
    began = _began(status)
    upstream = ",".join(job.get("upstream", []))
    return JobRunSpec(
        name=str(job.get("name") or folder.name),
        experiment=f"jigclu-{job.get('scale', 'paper')}",
        start=began or _start(folder, result),
        started=began is not None,
        source=f"{job.get('source_digest', '')} {job.get('data_fingerprint', '')}",
        tags=_record(folder, job, status, result, state).to_tags(),
        params={**_flat(job.get("config", {})), **({"upstream": upstream} if upstream else {})},
        points=points,
        status=(RUN_STATUS.get(state, "RUNNING"), end),
        uses=list(job.get("uses", [])),
        seed=int(job.get("seed", 0)),
    )


def _began(status: dict[str, Any]) -> int | None:
    """Unix ms: when the first attempt began. A job that was interrupted and resumed keeps it."""
    attempts = status.get("attempts") or [{}]
    began = attempts[0].get("began")
    return int(1000 * began) if began else None


def _start(folder: Path, result: dict[str, Any]) -> int:
    """Without a record of attempts: when the result was finished minus its seconds, else the first metric's time, else
    when the job was planned."""
    if "finished" in result and "seconds" in result:
        return int(1000 * (result["finished"] - result["seconds"]))
    first = next(JobFolder(folder).metrics(), {})
    return int(1000 * first.get("time", (folder / "job.json").stat().st_mtime))


def _record(folder: Path, job: dict[str, Any], status: dict[str, Any], result: dict[str, Any], state: str) -> JobRecord:
    versions = sorted(result.get("versions", {}).items())
    files, ended = JobFolder(folder), state not in ("running", "pending")
    problems = [] if state == "done" else files.problems
    return JobRecord(
        job=folder.name,
        stage=str(job.get("stage", "")),
        label=str(job.get("label", "")),
        experiments=tuple(job.get("experiments", [])),
        seed=str(job.get("seed", 0)),
        protocol=str(job.get("protocol", "")),
        scale=str(job.get("scale", "")),
        state=state,
        message="; ".join(filter(None, (str(status.get("message") or ""), *problems))),
        command=str(job.get("command", "")),
        device=str(result.get("device", "")),
        versions=" ".join(f"{name}={version}" for name, version in versions),
        slurm_job_id=str(status.get("slurm_job_id") or ""),
        attempt=len(status.get("attempts", [])) or None,
        ranks=result.get("world"),
        estimated_hours=number(submission(files).get("estimate_hours")),
        spent_hours=hours_spent(files) if ended else None,
        spent_seconds=seconds_spent(files) if ended else None,
        folder=f"{folder.parent.name}/{folder.name}",
        encoder=f"{folder.parent.name}/{folder.name}/encoder.pt" if (folder / "encoder.pt").exists() else "",
        result=_headline(result),
        data_fingerprint=str(job.get("data_fingerprint", "")),
        source_digest=str(job.get("source_digest", "")),
        commit=str(job.get("commit", "")),
        note=_note(folder, job, status, state),
    )


def _headline(result: dict[str, Any]) -> str:
    """`top1 14.4`: the stage's main number as on the report's page; "" if there is none."""
    metrics = result.get("metrics", {})
    name = next((name for name in HEADLINES if isinstance(metrics.get(name), int | float)), "")
    return f"{name} {metrics[name]:.{HEADLINES[name]}f}" if name else ""


def _note(folder: Path, job: dict[str, Any], status: dict[str, Any], state: str) -> str:
    """The description on the run's page, Markdown."""
    uses = [f"{use['experiment']} {use['cell']} ({use['metric']})" for use in job.get("uses", [])]
    attempt = len(status.get("attempts", []))
    lines = [f"**{job.get('name', folder.name)}**: {state}{f', attempt {attempt}' if attempt > 1 else ''}"]
    if status.get("message") and state in ("failed", "interrupted", "cancelled", "lost"):
        lines.append(str(status["message"])[:2000])
    if uses:
        lines.append(f"Result for {', '.join(uses)}.")
    if job.get("upstream"):
        lines.append(f"Upstream: {', '.join(f'`{job_id}`' for job_id in job['upstream'])}.")
    lines.append(f"Folder: `{folder.parent.name}/{folder.name}` in the store.")
    if job.get("command"):
        lines.append(f"Reproduce: `{job['command']}`")
    if job.get("dirty"):
        lines.append("The working tree had uncommitted changes.")
    return "\n\n".join(lines)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values with dotted keys; text unchanged, everything else as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[metric_name(f"{prefix}{key}")] = value if isinstance(value, str) else json.dumps(value)
    return flat
