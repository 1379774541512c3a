"""The job folder: the contract between orchestrate, the stages and reports. Plain files, no torch.

<store>/<stage>/<job id>/
  job.json       what the job is              status.json   its state and progress (atomic)
  metrics.jsonl  one line per logged step     result.json   atomic, written last: its presence means done
  checkpoint/    encoder.pt   figures/   logs/   source -> the frozen tree it ran from
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jigclu.files import locked, read_json, write_atomic, write_json

# pending: waits for upstream jobs or a slot; running; interrupted: stopped at a step boundary, resumes there; done;
# failed. The orchestrator writes what a job cannot: cancelled, lost (SLURM has no such job, and there is no result).
STATES = ("pending", "running", "interrupted", "done", "failed", "cancelled", "lost")


def clock(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


STORE_MARKS = {
    "pretrain",
    "linear",
    "finetune",
    "knn",
    "detect",
    "source",
    "mlflow.db",
    "rates.jsonl",
    "orchestrator.log",
}


def is_foreign(entries: list[str]) -> bool:
    """Whether a folder with these entries is no store: it has files, none hidden, and none that a store has."""
    shown = {name for name in entries if not name.startswith(".")}
    return bool(shown) and not shown & STORE_MARKS and ".mirror" not in entries


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
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(self.path, 0o700)
        for name in ("checkpoint", "figures", "logs"):
            (self.path / name).mkdir(exist_ok=True, mode=0o700)
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
        return read_json(self.path / "job.json")

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
                raise FileNotFoundError(f"upstream encoder is missing: {path}")
            return path
        return None

    # -- status.json ----------------------------------------------------------------------------------------------
    @property
    def status(self) -> dict[str, Any]:
        return read_json(self.path / "status.json")

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
        """Every complete line; a truncated last line (killed during a write) is skipped."""
        if not self.metrics_path.exists():
            return
        with open(self.metrics_path) as file:
            for line in file:
                if line.endswith("\n"):
                    with contextlib.suppress(json.JSONDecodeError):
                        yield json.loads(line)

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after `step`: a resumed job logs them again."""
        if self.metrics_path.exists():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
            write_atomic(self.metrics_path, "".join(kept).encode())

    # -- result.json ----------------------------------------------------------------------------------------------
    @property
    def done(self) -> bool:
        return (self.path / "result.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        return read_json(self.path / "result.json")

    def write_result(self, metrics: dict[str, float], **details: Any) -> dict[str, Any]:
        """Write result.json, then status done. `metrics`: flat numbers that cells refer to, accuracies in percent."""
        result = {"metrics": metrics, "finished": time.time(), **details}
        write_json(self.path / "result.json", result)
        self.set_status("done", message="")
        return result
