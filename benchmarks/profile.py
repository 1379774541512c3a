"""`python -m benchmarks profile`: the operations that the full step spends its time on, by torch.profiler."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from benchmarks.ablations import method_and_batch
from benchmarks.step import full_step
from benchmarks.timing import wait
from benchmarks.workload import Workload

STEPS = 5


def summary(workload: Workload, lines: int = 20) -> str:
    """A Markdown table of the slowest operations, in percent of the step's time, with calls per step."""
    method, batch = method_and_batch(workload)
    step = full_step(workload, method, batch)
    for _ in range(3):
        step()
    wait()
    device = workload.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device else [])]
    with profile(activities=kinds) as seen:
        for _ in range(STEPS):
            step()
        wait()
    times = {
        event.key: (event.self_device_time_total if device else event.self_cpu_time_total, event.count)
        for event in seen.key_averages()
    }
    total = sum(time for time, _ in times.values())
    first = sorted(times.items(), key=lambda item: -item[1][0])[:lines]
    rows = [f"| {name[:60]} | {100 * time / total:.1f} | {count / STEPS:g} |" for name, (time, count) in first]
    return "\n".join(["| operation | % of the time | calls per step |", "|---|---|---|", *rows])
