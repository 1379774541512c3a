"""How much memory training took at most."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

from jigclu.data.datasets import resident_bytes


def peak_memory_mb(device: torch.device) -> float:
    """Peak in MiB so far: tensors on a CUDA device (the allocator's own count), else this process's resident memory.

    Less a data set that lies on the device (`CanvasDataset.resident`): that there is a pack must not change what a method takes.
    """
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated(device) - resident_bytes(device)) / 2**20
    with contextlib.suppress(OSError, StopIteration):  # Linux; its ru_maxrss begins with what the parent had
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10  # of kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux
