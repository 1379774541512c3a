"""Estimates from the store's earlier jobs. No torch.

<store>/rates.jsonl has one line per finished job: the device-hours that it spent (orchestrate/jobs/spent.py), on its
start and on its work, and those that stated.py gives for its work. A job's estimate is

    the median start of earlier jobs + its stated work x the median of (spent / stated) work of similar earlier jobs.

Similar: of its stage, kind of device and preferably its cluster, at most SIMILAR times smaller or larger (a job of
seconds says little about one of hours), and not slowed down by other programs: its main thread had to wait for a core
during less than CROWDED of its time. Of these the NEAREST in size count. Without any, the stated rate does.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jigclu.config import parse
from jigclu.files import locked
from jigclu.job_folder import JobFolder
from orchestrate.clusters import Request
from orchestrate.cost import stated
from orchestrate.jobs.spent import device_kind, devices, hours_spent, seconds_spent, waited_for_cores
from orchestrate.jobs.submissions import submission
from orchestrate.planning.plan import Job

RATES = "rates.jsonl"
NEAREST = 5  # earlier jobs that an estimate is based on
SIMILAR = 20.0  # times larger or smaller in stated work
CROWDED = 0.25  # share of the time in which a job waited for a core
STATED_RATE = "the stated rate"
# What lines of older versions, which lack `work_hours` or `stated_rate`, were written with.
OLD_START, OLD_RATES = 6 / 3600, {"GPU": 938.0, "CPU": 10.0}


def note_finished(folder: JobFolder) -> None:
    """Add the finished job's line. Call it in the job's own process, after the end of the attempt was recorded."""
    job, result, submitted = folder.job, folder.result, submission(folder)
    device = str(result.get("device", ""))
    kind, seconds, attempts = device_kind(device), seconds_spent(folder) or 0.0, folder.status.get("attempts", [])
    work = min(float(result["seconds"]), seconds)
    values = {
        "job": folder.id, "stage": job["stage"], "device": device, "kind": kind, "ranks": int(result.get("world", 1)),
        "hours": hours_spent(folder),
        "start_hours": (seconds - work) / max(1, len(attempts)) / 3600,  # wall time, of one attempt
        "work_hours": work * devices(folder) / 3600,
        "stated_hours": stated.hours(parse(job["stage"], job["config"]), kind) - stated.START_HOURS[kind],
        "stated_rate": stated.rate(job["stage"], kind),
        "waited": round(waited_for_cores(), 3),
        "estimate_hours": submitted.get("estimate_hours"), "scale": job.get("scale"), "site": submitted.get("site"),
        "time": time.time(),
    }  # fmt: skip
    with locked(folder.store / ".rates.lock"), open(folder.store / RATES, "a") as file:
        file.write(json.dumps(values) + "\n")


class Earlier(NamedTuple):
    """A line of rates.jsonl. Hours are device-hours, `start` is wall time."""

    job: str
    stage: str
    device: str
    kind: str
    start: float
    work: float
    stated: float
    waited: float
    ratio: float | None  # spent / estimated
    site: str
    time: float

    @classmethod
    def read(cls, line: str) -> Earlier | None:
        """None for a line that is incomplete or makes no sense."""
        try:
            values = json.loads(line)
            hours, old = float(values["hours"]), "work_hours" not in values
            start = OLD_START if old else float(values["start_hours"])
            work = max(hours - start, hours / 10) if old else float(values["work_hours"])
            stated_work = float(values["table_hours"]) - OLD_START if old else float(values["stated_hours"])
            rate = stated.rate(str(values["stage"]), str(values["kind"]))  # it may have been corrected since
            usual = rate if values["stage"] == "detect" else OLD_RATES[values["kind"]]
            stated_work *= float(values.get("stated_rate", usual)) / rate
            estimate = values.get("estimate_hours")
            found = cls(
                str(values["job"]), str(values["stage"]), str(values["device"]), str(values["kind"]), start, work,
                stated_work, float(values.get("waited", 0.0)), hours / estimate if estimate else None,
                str(values.get("site") or ""), float(values["time"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if min(hours, found.work, found.stated) > 0 and math.isfinite(hours + found.work) else None


class Measured:
    """The store's rates, read once."""

    def __init__(self, store: Path, site: str = ""):
        self._path, self._site = store / RATES, site
        # (start, work, what they are based on): seeds and many cells cost the same
        self._near: dict[tuple[str, str, float], tuple[float, float, str]] = {}

    @cached_property
    def lines(self) -> list[Earlier]:
        """The last line of each job, without incomplete ones."""
        if not self._path.exists():
            return []
        found = filter(None, map(Earlier.read, self._path.read_text(errors="replace").splitlines()))
        return list({line.job: line for line in found}.values())

    def hours(self, job: Job, kind: str, devices: float = 1.0) -> tuple[float, str]:
        """(device-hours on `GPU`s or on a whole machine's `CPU`, what the estimate is based on).

        `devices`: GPUs that the job uses at once, or its share of the machine's cores; each waits for the start.
        """
        key = job.stage, kind, stated.hours(job.config, kind) - stated.START_HOURS[kind]
        if key not in self._near:
            self._near[key] = self._estimate(*key)
        start, work, by = self._near[key]
        return start * devices + work, by

    def _estimate(self, stage: str, kind: str, work: float) -> tuple[float, float, str]:
        lines = [line for line in self.lines if line.stage == stage and line.kind == kind]
        lines = [line for line in lines if line.site == self._site] or lines  # the same cluster's devices, if any
        free = [line for line in lines if line.waited < CROWDED]
        start = statistics.median(line.start for line in free) if free else stated.START_HOURS[kind]
        similar = [line for line in free if 1 / SIMILAR <= line.stated / work <= SIMILAR]
        if not similar:
            return start, work, STATED_RATE
        near = sorted(similar, key=lambda line: (abs(math.log(line.stated / work)), -line.time))[:NEAREST]
        ratio = statistics.median(line.work / line.stated for line in near)
        names = ", ".join(sorted({line.device for line in near}))
        return start, work * ratio, f"{len(near)} earlier {stage} job{'s' * (len(near) > 1)} on {names}"

    @property
    def left_out(self) -> int:
        """Earlier jobs that no estimate is based on because other programs used their cores."""
        return sum(line.waited >= CROWDED for line in self.lines)

    def note(self, job: Job, request: Request, share: float = 1.0) -> dict[str, Any]:
        """The estimate as submission.json keeps it, to be compared with what the job takes."""
        hours, by = self.hours(job, "GPU" if request.gpus_per_task else "CPU", request.ranks * share)
        return {"estimate_hours": hours, "estimate_by": by, "ranks": request.ranks, "share": share}

    def graded(self) -> str:
        """`12 jobs took 0.93 times the estimate (median; 0.71 to 1.42)`; "" without any."""
        ratios = sorted(line.ratio for line in self.lines if line.ratio is not None)
        if not ratios:
            return ""
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        jobs = "1 job" if len(ratios) == 1 else f"{len(ratios)} jobs"
        return f"{jobs} took {statistics.median(ratios):.2f} times the estimate (median; {spread})"
