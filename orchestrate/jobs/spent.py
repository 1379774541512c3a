"""What a job has cost. This is the one definition of spent time; `why`, `status`, the page and estimates all use it.

status.json has one entry per attempt: when its process began and when it ended. An attempt that was killed could not
record its end: the next one does, with the last heartbeat.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from jigclu.job_folder import JobFolder, duration
from orchestrate.jobs.submissions import submission

SPENT = (
    "every attempt from its start to its end, loading Python and torch included; "
    "GPU-h and CPU-h: times the GPUs, or the share of the machine's cores, that the job used"
)
ESTIMATED = "the same, as expected when the job was submitted"


def attempt_began() -> float:
    """Unix seconds at which this job's process started: before Python and its packages were loaded."""
    now = time.time()
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if not main or not main.name.startswith("submitit."):  # run within another program: a test
        return now
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return now - max(0.0, min(age, 3600.0))
    return now


def closed(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The attempts of status.json; the last one, if it could not record its end, ends with the last heartbeat."""
    attempts = [dict(attempt) for attempt in status.get("attempts", [])]
    if attempts and "ended" not in attempts[-1] and "heartbeat" in status:
        attempts[-1]["ended"] = max(attempts[-1]["began"], float(status["heartbeat"]))
    return attempts


def note_end(folder: JobFolder) -> None:
    """Record the end of the running attempt."""
    status = folder.status
    attempts = status.get("attempts", [])
    if attempts and status.get("state"):
        attempts[-1]["ended"] = max(attempts[-1]["began"], time.time())  # the clock may have been set back
        folder.set_status(status["state"], attempts=attempts)


def seconds_spent(folder: JobFolder) -> float | None:
    """Wall time from the start to the end of each attempt, over all attempts; None if none is recorded.

    Older stores have no ends: there it is the time in training.
    """
    attempts = closed(folder.status)
    if attempts and all("ended" in attempt for attempt in attempts):
        return float(sum(attempt["ended"] - attempt["began"] for attempt in attempts))
    seconds = folder.result.get("seconds")
    return None if seconds is None else float(seconds)


def devices(folder: JobFolder) -> float:
    """GPUs (ranks) that the job used at the same time; on a CPU the share of the machine's cores."""
    return int(folder.result.get("world", 1)) * float(submission(folder).get("share") or 1.0)


def hours_spent(folder: JobFolder) -> float | None:
    """Device-hours: `seconds_spent` times `devices`."""
    seconds = seconds_spent(folder)
    return None if seconds is None else seconds * devices(folder) / 3600


def times_estimate(folder: JobFolder) -> float | None:
    """Spent over estimated hours of a finished job; None if either is unknown."""
    estimate = submission(folder).get("estimate_hours")
    spent = hours_spent(folder) if folder.done else None
    return spent / float(estimate) if estimate and spent is not None else None


def took(folder: JobFolder) -> str:
    """`2 min 05 s, 1.04 times the estimate`; "" if it is unknown."""
    seconds, ratio = seconds_spent(folder), times_estimate(folder)
    if seconds is None:
        return ""
    return ", ".join([duration(seconds), *([f"{ratio:.2f} times the estimate"] if ratio is not None else [])])


def device_hours(hours: float, kind: str) -> str:
    """`7.5 GPU-h`, `1,187 GPU-h`, `0.032 CPU-h`."""
    if hours == 0 or hours >= 100:
        return f"{hours:,.0f} {kind}-h"
    return (
        f"{hours:.1f} {kind}-h"
        if hours >= 1
        else f"{hours:.2g} {kind}-h"
        if hours >= 0.001
        else f"{hours:.4f} {kind}-h"
    )


def device_kind(device: str) -> str:
    """`CPU` or `GPU`, by the device's name in result.json: a CPU's ends with its number of threads."""
    return "CPU" if device.endswith("threads") else "GPU"


def waited_for_cores() -> float:
    """Share (0 to 1) of its time in which this process's main thread was ready to run but had no core."""
    with contextlib.suppress(OSError, ValueError):
        ran, waited = map(int, Path("/proc/self/schedstat").read_text().split()[:2])
        return waited / max(ran + waited, 1)
    return 0.0
