"""The time that is left until jobs are done, from their estimates and from what the running ones report. No torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from jigclu.job_folder import duration
from orchestrate.cost.stated import wall_hours


class Pace:
    """How much longer the jobs of one run take than was estimated: the median of its stage, or of all its jobs."""

    def __init__(self) -> None:
        self._ratios: dict[str, list[float]] = {}

    def add(self, stage: str, seconds: float | None, estimated: float) -> None:
        if seconds and estimated > 0:
            self._ratios.setdefault(stage, []).append(seconds / estimated)

    def of(self, stage: str) -> float:
        ratios = self._ratios.get(stage) or [ratio for ratios in self._ratios.values() for ratio in ratios]
        return statistics.median(ratios) if ratios else 1.0


def of_running(status: Mapping[str, Any], estimated: float) -> float:
    """Seconds left of a running job: those that it reports, less the time since; else its estimate less its time so far."""
    now = time.time()
    if status.get("state") == "running" and "seconds_left" in status:
        return max(0.0, float(status["seconds_left"]) - (now - float(status.get("heartbeat", now))))
    attempts = status.get("attempts", [])
    began = float(attempts[-1]["began"]) if attempts and status.get("state") == "running" else now
    return max(1.0, estimated - (now - began))


def seconds_left(
    jobs: Mapping[str, tuple[float, tuple[str, ...]]], running: Mapping[str, Mapping[str, Any]], at_once: int
) -> float:
    """Seconds until all jobs are done, `at_once` of them at a time.

    `jobs`, upstream first: id -> (hours of the whole job, upstream ids); `running`: status.json of those that run.
    """
    left = {
        job_id: of_running(running[job_id], 3600 * hours) / 3600 if job_id in running else hours
        for job_id, (hours, _) in jobs.items()
    }
    first = sorted(jobs, key=lambda job_id: job_id not in running)  # they have their devices already
    order = {job_id: (left[job_id], 1, jobs[job_id][1]) for job_id in first}
    return 3600 * wall_hours(order, max(1, at_once))


def in_words(seconds: float) -> str:
    """`about 2 min 05 s left`."""
    return f"about {duration(seconds)} left"
