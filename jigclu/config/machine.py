"""The cores that this process may use, and how many threads the user asks for. No torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from jigclu.config.base import ConfigError


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may use: its CPU affinity, cut to the CPU quota of its container."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # `max 100000` without a quota
        cores = cores[: max(1, int(quota) // int(period))]
    return cores


def threads_from_environment(environment: Mapping[str, str] = os.environ) -> int | None:
    """JIGCLU_THREADS; None if it is not set. ConfigError if it is no whole number above 0."""
    given = environment.get("JIGCLU_THREADS", "").strip()
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"JIGCLU_THREADS={given}: give a whole number of CPU threads, at least 1, or unset it")
    return int(given)


def core_names(cores: Iterable[int]) -> list[str]:
    return [f"core{core}" for core in cores]
