"""Estimates from the store's earlier jobs. No torch.

<store>/rates.jsonl has one line per finished job: the device-hours that it took, and those that stated.py gives for it.
A job's estimate is the stated hours times the median ratio of the earlier jobs of its stage on that kind of device that
are closest to it in size, preferably from its own cluster.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from jigclu.config import parse
from jigclu.files import locked
from jigclu.job_folder import JobFolder
from orchestrate.clusters import Request
from orchestrate.cost import stated
from orchestrate.jobs.submissions import submission
from orchestrate.planning.plan import Job

RATES = "rates.jsonl"
NEAREST = 5  # earlier jobs that an estimate is based on
STATED_RATE = "the stated rate"
KEPT = ("job", "stage", "device", "kind", "ranks", "hours", "table_hours", "estimate_hours", "scale", "site", "time")


def device_kind(device: str) -> str:
    """`CPU` or `GPU`, by the device's name in result.json: a CPU's ends with its number of threads."""
    return "CPU" if device.endswith("threads") else "GPU"


def note_finished(folder: JobFolder) -> None:
    """Add the finished job's line."""
    job, result, submitted = folder.job, folder.result, submission(folder)
    device = str(result.get("device", ""))
    kind = device_kind(device)
    ranks = int(result.get("world", 1))
    values = {
        "job": folder.id, "stage": job["stage"], "device": device, "kind": kind, "ranks": ranks,
        "hours": _seconds(folder) * ranks / 3600,
        "table_hours": stated.hours(parse(job["stage"], job["config"]), kind),
        "estimate_hours": submitted.get("estimate_hours"), "scale": job.get("scale"), "site": submitted.get("site"),
        "time": time.time(),
    }  # fmt: skip
    with locked(folder.store / ".rates.lock"), open(folder.store / RATES, "a") as file:
        file.write(json.dumps({key: values[key] for key in KEPT}) + "\n")


def _seconds(folder: JobFolder) -> float:
    """Wall time of the process, loading Python included; after several attempts, the time spent training."""
    attempts = folder.status.get("attempts", [])
    return float(time.time() - attempts[0]["began"] if len(attempts) == 1 else folder.result["seconds"])


class Measured:
    """The store's rates, read once."""

    def __init__(self, store: Path, site: str = ""):
        self._path, self._site = store / RATES, site
        self._near: dict[tuple[str, str, float], tuple[float, str]] = {}  # seeds and many cells cost the same

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The last line of each job, without incomplete ones."""
        if not self._path.exists():
            return []
        found: dict[str, dict[str, Any]] = {}
        for line in self._path.read_text().splitlines():
            try:
                values = json.loads(line)
                found[values["job"]] = values
            except (ValueError, KeyError, TypeError):
                continue
        return list(found.values())

    def hours(self, job: Job, kind: str) -> tuple[float, str]:
        """(hours of one `GPU` or of a whole machine's `CPU`, what the estimate is based on)."""
        key = job.stage, kind, stated.hours(job.config, kind)
        if key not in self._near:
            self._near[key] = self._hours(*key)
        return self._near[key]

    def _hours(self, stage: str, kind: str, table: float) -> tuple[float, str]:
        lines = [line for line in self.lines if line["stage"] == stage and line["kind"] == kind and line["hours"] > 0]
        lines = [
            line for line in lines if line.get("site") == self._site
        ] or lines  # the same cluster's devices, if any
        if not lines:
            return table, STATED_RATE
        near = sorted(lines, key=lambda line: (abs(math.log(line["table_hours"] / table)), -line["time"]))[:NEAREST]
        ratio = statistics.median(line["hours"] / line["table_hours"] for line in near)
        devices = ", ".join(sorted({line["device"] for line in near}))
        return table * ratio, f"{len(near)} earlier {stage} job{'s' * (len(near) > 1)} on {devices}"

    def note(self, job: Job, request: Request) -> dict[str, Any]:
        """The estimate as submission.json keeps it, to be compared with what the job takes."""
        hours, by = self.hours(job, "GPU" if request.gpus_per_task else "CPU")
        return {"estimate_hours": hours, "estimate_by": by}

    def grade(self, job_id: str) -> float | None:
        """The job's hours over the estimated ones; None if either is unknown."""
        found = next((line for line in self.lines if line["job"] == job_id and line["estimate_hours"]), None)
        return float(found["hours"] / found["estimate_hours"]) if found else None

    def graded(self) -> str:
        """`12 jobs took 0.93 times what was estimated (median; 0.71 to 1.42)`; "" without any."""
        ratios = sorted(line["hours"] / line["estimate_hours"] for line in self.lines if line["estimate_hours"])
        if not ratios:
            return ""
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        jobs = "1 job" if len(ratios) == 1 else f"{len(ratios)} jobs"
        return f"{jobs} took {statistics.median(ratios):.2f} times what was estimated (median; {spread})"
