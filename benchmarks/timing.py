"""Shared by all groups of measurements: rows with median and quartiles, ratios with targets, facts about the machine."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """n timings in seconds. `items`: images (or jobs, points) processed per round."""

    name: str
    seconds: tuple[float, ...]
    items: int = 0
    unit: str = "images"
    facts: Mapping[str, float] = field(default_factory=dict)  # other measurements, such as `peak_memory_mb`

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Ratio:
    """A number without a unit, comparable between machines. `target`: (">=", "<=" or "==", value)."""

    name: str
    value: float
    target: tuple[str, float] | None = None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        sign, value = self.target
        return {">=": self.value >= value, "<=": self.value <= value, "==": self.value == value}[sign]


@dataclass
class Group:
    """One subject of the benchmark: timings, and ratios computed from them. `setting`: sizes and precision, in words."""

    name: str
    setting: str
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)


def timed(
    name: str, works: Mapping[str, Callable[[], Any]] | Callable[[], Any], rounds: int, *, items: int = 0,
    unit: str = "images", warm: int = 2,
) -> list[Row]:  # fmt: skip
    """One Row per callable in `works`: `rounds` timings after `warm` untimed calls.

    Several callables alternate, round by round, so that a slow phase of the machine affects all of them alike. A mapping's keys
    name the rows; `name` names a single callable's row.
    """
    named = works if isinstance(works, Mapping) else {name: works}
    for work in named.values():
        for _ in range(warm):
            work()
    seconds: dict[str, list[float]] = {key: [] for key in named}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for key, work in named.items():
                wait()
                start = time.perf_counter()
                work()
                wait()
                seconds[key].append(time.perf_counter() - start)
    finally:
        if enabled:
            gc.enable()
    return [Row(key, tuple(values), items, unit) for key, values in seconds.items()]


def wait() -> None:
    """Wait until the device has run all queued kernels."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def about(device: str) -> dict[str, Any]:
    """Hardware, versions and date, recorded with every committed number."""
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "torchvision", "pillow", "numpy", "mlflow")
    }
    return {
        "device": device,
        "cpu_threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
