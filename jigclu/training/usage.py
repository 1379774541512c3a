"""A job's use of CPU, memory and GPU, logged beside the loss. MLflow shows names that begin with `system/` on a separate tab."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path

import torch

from jigclu.data.canvases import resident_bytes

MIB = 2**20


class Usage:
    """Use since the last call, by this process (rank 0's) and on its own GPU, not by the whole machine."""

    def __init__(self, device: torch.device):
        self.device = device
        self._before = time.monotonic(), _cpu_seconds()

    def __call__(self) -> dict[str, float]:
        """`system/cpu_percent` (100 is one core), `system/memory_mb`; for a GPU its memory and, with NVML, its utilization."""
        (then, used), now = self._before, (time.monotonic(), _cpu_seconds())
        self._before = now
        values = {"system/cpu_percent": 100 * (now[1] - used) / max(now[0] - then, 1e-9)}
        with contextlib.suppress(OSError):  # Linux only
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            values["system/memory_mb"] = pages * resource.getpagesize() / MIB
        if self.device.type == "cuda":
            values["system/gpu_memory_mb"] = torch.cuda.memory_reserved(self.device) / MIB
            with contextlib.suppress(Exception):  # no NVML, or no permission to use it
                values["system/gpu_utilization_percent"] = float(torch.cuda.utilization(self.device))
        return {name: round(value, 1) for name, value in values.items()}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_memory_mb(device: torch.device) -> float:
    """Peak in MiB so far: tensors on a CUDA device (the allocator's own count), else this process's resident memory.

    Without a data set resident on the device (`CanvasDataset.resident`): having a pack must not change a method's memory.
    """
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated(device) - resident_bytes(device)) / 2**20
    with contextlib.suppress(OSError, StopIteration):  # on Linux ru_maxrss starts with the parent's value
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10  # of kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux
