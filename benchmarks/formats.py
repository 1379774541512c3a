"""Table 6's three input formats and the bare backbone: time and peak memory of a step, each in a separate process.

`python -m benchmarks.formats NAME ROUNDS` measures one of them and prints JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.step import bare_step, full_step
from benchmarks.timing import Group, Ratio, Row, timed
from benchmarks.workload import Workload, default_workload, one_batch, photographs
from jigclu import methods
from jigclu.training.usage import peak_memory_mb

FORMATS = {
    "bare": "bare backbone on montages",
    "montage": "(c) montage image",
    "scaled": "(b) scaled-up patch",
    "small": "(a) small patch",
}


def measure(workload: Workload, rounds: int) -> Group:
    turns = [[in_process(name, max(3, rounds // 4), workload.batch_size) for name in FORMATS] for _ in range(2)]
    rows = [merged(*pair) for pair in zip(*turns, strict=True)]
    kind = "device memory" if workload.device.type == "cuda" else "resident memory above that before the first step"
    group = Group("formats", f"{workload.words}; {kind}", rows)
    bare, montage, scaled, small = rows
    memory = {row.name: row.facts["peak_memory_mb"] for row in rows}
    group.ratios = [
        Ratio("montage / bare backbone, peak memory", memory[montage.name] / memory[bare.name], ("<=", 1.05)),
        Ratio("montage / scaled-up patches, seconds (printed: 0.34)", montage.median / scaled.median, ("<=", 0.42)),
        Ratio(
            "montage / scaled-up patches, peak memory (printed: 0.41)",
            memory[montage.name] / memory[scaled.name],
            ("<=", 0.42),
        ),
        Ratio("montage / small patches, seconds (printed: 1.04)", montage.median / small.median, ("<=", 1.25)),
    ]
    return group


def in_process(name: str, rounds: int, items: int) -> Row:
    command = [sys.executable, "-m", "benchmarks.formats", name, str(rounds)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr.strip().splitlines()[-1:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return Row(FORMATS[name], tuple(result["seconds"]), items, facts={"peak_memory_mb": result["peak_memory_mb"]})


def merged(first: Row, second: Row) -> Row:
    """Merge the two turns of a format: all timings, the higher peak."""
    peak = max(row.facts["peak_memory_mb"] for row in (first, second))
    return Row(first.name, first.seconds + second.seconds, first.items, facts={"peak_memory_mb": peak})


def measure_format(name: str, rounds: int) -> None:
    """Print the timings and the peak memory of one format as JSON."""
    workload = default_workload()
    with photographs(workload, workload.batch_size) as dataset:
        batch = one_batch(workload, dataset)
    form = "montage" if name == "bare" else name
    method = methods.build(
        workload.config(method={"name": "jigclu", "input": form}), 0, workload.rank_info, len(dataset.classes)
    )
    montages = torch.randn(workload.batch_size, 3, workload.image_size, workload.image_size, device=workload.device)
    montages = montages.contiguous(memory_format=torch.channels_last)
    step = bare_step(workload, montages) if name == "bare" else full_step(workload, method, batch)
    before = resident_mb()
    row = timed(name, step, rounds, warm=2)[0]
    peak = peak_memory_mb(workload.device) - (0 if workload.device.type == "cuda" else before)
    print(json.dumps({"seconds": row.seconds, "peak_memory_mb": peak}))


def resident_mb() -> float:
    """This process's current resident memory in MiB (where there is no /proc: its peak so far)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return peak_memory_mb(torch.device("cpu"))


if __name__ == "__main__":
    measure_format(sys.argv[1], int(sys.argv[2]))
