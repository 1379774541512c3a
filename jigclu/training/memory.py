"""How much memory training took at most; and memory that stays with the process from step to step."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
_LARGE, _NEVER = 1 << 30, -1  # bytes


def keep_memory() -> None:
    """Let glibc keep what a training step frees for the next step's tensors, where it would give it back to the system.

    Every step asks for the same large blocks. Mapped anew, each page is faulted in and zeroed again, which costs a CPU job more
    than the arithmetic on it (benchmarks/README.md). Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _NEVER)


def peak_memory_mb(device: torch.device) -> float:
    """Peak in MiB so far: tensors on a CUDA device (the allocator's own count), else this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration):  # Linux; its ru_maxrss begins with what the parent had
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10  # of kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux
