"""The job folder: the contract between orchestrate, the stages and reports. Plain files, no torch.

<store>/<stage>/<job id>/
  job.json       what the job is              status.json   its state and progress (atomic)
  metrics.jsonl  one line per logged step     result.json   atomic, written last: if it is whole, the job is done
  checkpoint/    encoder.pt   correct.bits   figures/   logs/   source -> the frozen tree it ran from
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jigclu.files import (
    COUNT,
    FINITE,
    IDS,
    NUMBER,
    OBJECT,
    PID_OR_NULL,
    POSITIVE,
    SEED,
    STAMP,
    STAMP_OR_NULL,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    Shape,
    UnreadableFile,
    is_finite,
    locked,
    objects,
    read_cached_fields,
    read_fields,
    write_atomic,
    write_json,
)

# pending: waits for upstream jobs or a slot; running; interrupted: stopped at a step boundary, resumes there; done;
# failed. The orchestrator writes what a job cannot: cancelled, lost (SLURM has no such job, and there is no result).
STATES = ("pending", "running", "interrupted", "done", "failed", "cancelled", "lost")

# What the fields hold that other programs read; a file with anything else there was edited or damaged.
JOB_FIELDS = {
    **dict.fromkeys(("stage", "name", "label", "scale", "protocol", "command", "commit"), TEXT),
    **dict.fromkeys(("source_digest", "data_fingerprint"), TEXT_OR_NULL),
    "config": OBJECT,
    "upstream": IDS,
    "experiments": TEXTS,
    "uses": objects(dict.fromkeys(("experiment", "cell", "metric"), TEXT)),
    "seed": SEED,
}
STATUS_FIELDS = {
    "state": Shape(f"one of {', '.join(STATES)}", lambda value: value in STATES),
    **dict.fromkeys(("message", "slurm_job_id", "host"), TEXT_OR_NULL),
    **dict.fromkeys(("seconds_left", "images_per_second", "epoch", "epochs"), FINITE),
    "heartbeat": STAMP_OR_NULL,
    "pid": PID_OR_NULL,
    "loss": NUMBER,
    "step": COUNT,
    "steps": COUNT,
    "attempts": objects({"began": STAMP}, {"ended": STAMP, "step": COUNT, "host": TEXT, "slurm_job_id": TEXT_OR_NULL}),
}
RESULT_FIELDS = {
    "finished": STAMP,
    "seconds": FINITE,
    "world": POSITIVE,
    "device": TEXT,
    "versions": OBJECT,
    "by_lr": OBJECT,
}


PERCENT = re.compile(r"(\w+_)?(top[15]|ap(50|75)?|ar100)|ap_\w+")  # metrics in percent


def _wrong_metric(metrics: dict[str, Any]) -> str:
    """What no result has: the first metric that is not finite, or a percentage outside 0 to 100; "" if there is none."""
    for name, value in metrics.items():
        if not is_finite(value):
            return f"{name} is {value!r}"
        if PERCENT.fullmatch(name) and not 0 <= value <= 100:
            return f"{name} is {value!r}, and must be from 0 to 100 (percent)"
    return ""


def _blocked(path: Path) -> UnreadableFile:
    """Why the folder cannot be made: the first of its parents, or itself, that is no folder."""
    first = next(part for part in (*reversed(path.parents), path) if not part.is_dir())
    if first.is_symlink():
        return UnreadableFile(
            f"{first} is a link to {os.readlink(first)}, which is no folder: mount it, or remove the link"
        )
    return UnreadableFile(f"{first} is a file, not a folder; move it away")


def duration(seconds: float) -> str:
    """`5 s`, `1 min 55 s`, `2 h 05 min`, `3 d 4 h`: the one form in which people see a duration."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h" if hours < 2400 else f"{round(hours / 24):,} d"


def slurm_job_id() -> str | None:
    """`123`, `123_4` in an array, None outside SLURM.

    SLURM_JOB_ID alone is ambiguous: the last task of an array has the array's own id.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


class JobFolder:
    """Reads and writes one job folder. Only rank 0 of a job writes; everyone may read."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._last_status: dict[str, Any] = {}
        self._last_write = -math.inf

    def create(self) -> JobFolder:
        """Raises UnreadableFile if a file is where one of its folders must be."""
        for folder in (self.path, *(self.path / name for name in ("checkpoint", "figures", "logs"))):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except (FileExistsError, NotADirectoryError):
                raise _blocked(folder) from None
        os.chmod(self.path, 0o700)
        if self.metrics_path.is_dir():
            raise UnreadableFile(f"{self.metrics_path} is a folder, not a file; move it away")
        return self

    # -- job.json -------------------------------------------------------------------------------------------------
    @property
    def id(self) -> str:
        return self.path.name

    @property
    def store(self) -> Path:
        return self.path.parent.parent

    @property
    def job(self) -> dict[str, Any]:
        """The content of job.json. Raises UnreadableFile if that is empty, torn, no JSON, or damaged in a field."""
        values = read_fields(self.path / "job.json", JOB_FIELDS)
        if self.id in values.get("upstream", []):
            raise UnreadableFile(f"{self.path / 'job.json'}: upstream names the job itself")
        return values

    @property
    def seed(self) -> int:
        return int(self.job.get("seed", 0))

    def edit_job(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        """Replace job.json by `change(job.json)` under a lock; returns whether that changed anything.

        The lock is needed because the orchestrator adds experiments while the stage adds its fingerprint.
        """
        with locked(self.path / ".job.lock"):
            before = self.job
            after = change(before)
            if after != before:
                write_json(self.path / "job.json", after)
        return after != before

    def update_job(self, **fields: Any) -> None:
        """Merge fields into job.json."""
        self.edit_job(lambda job: {**job, **fields})

    def upstream_encoder(self) -> Path | None:
        """encoder.pt of the upstream pretraining; None: start from random weights. Raises FileNotFoundError."""
        for job_id in self.job.get("upstream", []):
            path: Path = self.store / "pretrain" / job_id / "encoder.pt"
            if not path.exists():
                raise FileNotFoundError(
                    f"upstream encoder is missing: {path}; put it back, or run the command again with --rerun-stale"
                )
            return path
        return None

    def lock_path(self, rank: int = 0) -> Path:
        """The file that the rank's worker locks while it runs."""
        return self.path / f".run{rank or ''}.lock"

    # -- status.json ----------------------------------------------------------------------------------------------
    @property
    def status(self) -> dict[str, Any]:
        """The content of status.json. {} if that is unreadable: the job writes it again."""
        values = read_cached_fields(self.path / "status.json", STATUS_FIELDS)
        return {key: value for key, value in values.items() if value is not None or key not in ("heartbeat", "pid")}

    def set_status(self, state: str, *, force: bool = True, **fields: Any) -> None:
        """Merge into status.json. With `force` off, at most one write every 2 s (the heartbeat of a running job)."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}; valid: {', '.join(STATES)}")
        now = time.time()
        if not force and now - self._last_write < 2:
            return
        base = self.status if force else self._last_status or self.status
        self._last_status = {
            **base,
            "state": state,
            "heartbeat": now,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm_job_id": slurm_job_id(),
            **fields,
        }
        write_json(self.path / "status.json", self._last_status)
        self._last_write = now

    # -- metrics.jsonl --------------------------------------------------------------------------------------------
    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, step: int, epoch: float, **metrics: float) -> None:
        """Append one line. `step` counts optimiser steps (epochs in stages without any); `epoch` is fractional."""
        line = json.dumps({"step": step, "epoch": epoch, "time": time.time(), **metrics})
        with open(self.metrics_path, "a") as file:
            file.write(line + "\n")

    def sync_metrics(self) -> None:
        """Flush everything logged to the disk."""
        if self.metrics_path.exists():
            with open(self.metrics_path, "a") as file:
                os.fsync(file.fileno())

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every complete line with a step; others (truncated by a kill, garbled by the disk) are skipped."""
        if not self.metrics_path.is_file():
            return
        with open(self.metrics_path, errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    values = json.loads(line) if line.endswith("\n") else None
                    if isinstance(values, dict) and isinstance(values.get("step"), int):
                        yield values

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after `step`, which a resumed job logs again, and all but the last of each step."""
        if self.metrics_path.exists():
            kept = {line["step"]: json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step}
            write_atomic(self.metrics_path, "".join(kept[number] for number in sorted(kept)).encode())

    # -- result.json ----------------------------------------------------------------------------------------------
    @property
    def done(self) -> bool:
        """Whether there is a whole result. An empty or torn result.json, or one with NaN, is none: the job runs again."""
        return bool(self.result)

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json; {} unless that is a JSON object with an object `metrics` of finite numbers."""
        return self._read_result()[0]

    @property
    def problems(self) -> list[str]:
        """What is wrong with the folder's JSON files, in words: `result.json is empty`."""
        found = [self._read_result()[1]]
        for read in (lambda: self.job, lambda: read_fields(self.path / "status.json", STATUS_FIELDS)):
            try:
                read()
            except UnreadableFile as error:
                found.append(self._relative(error))
        return [problem for problem in found if problem]

    def _relative(self, error: UnreadableFile) -> str:
        return str(error).replace(f"{self.path}/", "", 1)

    def _read_result(self) -> tuple[dict[str, Any], str]:
        """(its content, "") if result.json is whole, else ({}, what is wrong with it); both empty if there is none."""
        try:
            values = read_fields(self.path / "result.json", RESULT_FIELDS)
        except UnreadableFile as error:
            return {}, self._relative(error)
        if not values and not (self.path / "result.json").exists():
            return {}, ""
        if (owner := values.get("job", self.id)) != self.id:  # older results do not say whose they are
            return {}, f"result.json is of job {owner}: the folder was copied or renamed"
        metrics = values.get("metrics")
        if not isinstance(metrics, dict) or not metrics:
            return {}, "result.json has no metrics"
        wrong = _wrong_metric(metrics)
        return ({}, f"result.json: {wrong}") if wrong else (values, "")

    def write_result(self, metrics: dict[str, float], **details: Any) -> dict[str, Any]:
        """Write result.json, then status done. `metrics`: flat numbers that cells refer to, accuracies in percent.

        Raises ValueError for a metric that is not finite, or no percentage: such a file would be no result.
        """
        if wrong := _wrong_metric(metrics):
            raise ValueError(f"the result is not written: {wrong}")
        result = {"metrics": metrics, "finished": time.time(), "job": self.id, **details}
        write_json(self.path / "result.json", result)
        self.set_status("done", message="")
        return result
