"""`jigclu run --dry-run`: the job graph, what is cached, and the estimated cost."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from functools import partial

from jigclu.config import ConfigError
from jigclu.config.machine import usable_cores
from jigclu.job_folder import duration
from orchestrate.clusters import Request
from orchestrate.console import COLUMNS, print_line, wrapped
from orchestrate.cost.plan_cost import Cost
from orchestrate.planning.plan import Job, Plan

MANY_JOBS = 300  # from here on it is not worked out how many GPUs are busy at once


def dry_run(plan: Plan, states: dict[str, str], stale: set[str], cost: Cost, args: argparse.Namespace) -> int:
    """Print the plan's jobs as a tree, then totals, wall time and what would stop the run. `stale`: ids of jobs."""
    downstream = plan.downstream()

    def print_tree(job: Job, depth: int) -> None:
        state = "stale" if job.id in stale else states[job.id]
        cells = " ".join(shlex.quote(key) for key in sorted({use.cell for use in job.uses}))
        estimate = duration(3600 * cost.wall_of(job.id))
        print_line(f"{'  ' * depth}{job.id}  {state:11s} {estimate:>11s}  {job.name}{f'  [{cells}]' * bool(cells)}")
        for dependent in downstream[job.id]:
            print_tree(dependent, depth + 1)

    print_line("job           state          estimate  name  [cells, as --cells takes them]")
    for job in plan.jobs.values():
        if not job.upstream:
            print_tree(job, 0)
    done = len(plan.jobs) - len(cost.left)
    apart = f", {plan.naive} without sharing" if plan.naive != len(plan.jobs) else ""
    print_paragraph(
        f"{_jobs(len(plan.jobs))}{apart}, {done} done, {len(cost.left)} to run on {_where(cost, args.jobs)}"
    )
    if stale and not args.rerun_stale:
        print_paragraph(
            f"{_jobs(len(stale))} stale: --rerun-stale runs them again (`jigclu why JOB` says what changed)"
        )
    for text in (*cost.totals(), *_wall_time(cost, args.gpus), *cost.basis()):
        print_paragraph(text)
    for line in (*_requests(plan, cost), *_damage(plan, cost, states), *_problems(plan, cost, args.budget)):
        print_line(line)
    return 0


def print_paragraph(text: str) -> None:
    """In lines of at most 80 columns, also where the output is no terminal."""
    print_line(wrapped(text, COLUMNS))


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _where(cost: Cost, asked: int) -> str:
    """`local (2 cores, 2 jobs at once)`: where the jobs would run, and with what."""
    if cost.cluster.kind != "local":
        return cost.cluster.name
    if cost.gpus:
        return f"{cost.cluster.name} ({_gpus(cost.gpus)}, one job on each)"
    cores, slots = len(usable_cores()), min(asked, len(usable_cores()))
    at_once = f"{_jobs(slots)} at once" if slots > 1 else "one job at a time"
    return f"{cost.cluster.name} ({cores} core{'s' * (cores != 1)}, no GPU, {at_once})"


def _gpus(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"


def _wall_time(cost: Cost, asked: int | None) -> Iterator[str]:
    """Lines about the wall time, and about what the machine does not have."""
    if not cost.left:
        return
    if cost.kind == "CPU":
        if asked:
            yield f"--gpus {asked} has no effect on this plan: its jobs run on the CPU"
        yield f"wall time: about {duration(3600 * cost.wall(cost.slots))}"
        return
    devices = max(asked or cost.gpus or 4, cost.widest)
    least = f", the least that one of its jobs needs; {asked} are too few" if (asked or devices) < devices else ""
    wall = cost.wall(devices)
    hint = "" if asked else " (--gpus N for another number)"
    yield f"wall time on {_gpus(devices)}{least}: about {duration(3600 * wall)}{hint}"
    if cost.cluster.kind == "local" and len(cost.left) < MANY_JOBS:
        busy = next(number for number in range(1, devices + 1) if cost.wall(number) <= wall * 1.001)
        if busy < devices:
            yield f"(a job that runs locally uses one GPU, so {busy} of the {_gpus(devices)} would be enough)"
    if cost.missing_gpus:
        here = duration(3600 * cost.cpu_wall())
        yield f"this machine has no GPU: on its CPU the jobs would take about {here}"
    elif cost.gpus and devices > cost.gpus:
        yield f"this machine has {_gpus(cost.gpus)}: there about {duration(3600 * cost.wall(cost.gpus))}"


def _damage(plan: Plan, cost: Cost, states: dict[str, str]) -> Iterator[str]:
    """Files of jobs without a whole result that cannot be read."""
    for job_id in plan.jobs:
        if states[job_id] != "done":
            folder = cost.placements[job_id].folder
            yield from (f"{folder.path}: {problem}; it counts as absent" for problem in folder.problems)


def _requests(plan: Plan, cost: Cost) -> Iterator[str]:
    """What each stage with jobs left requests from SLURM."""
    if cost.cluster.kind != "slurm":
        return
    requests = {plan.jobs[job_id].stage: cost.placements[job_id].request for job_id in cost.left}
    for stage in sorted(requests):
        yield f"{stage}: {_describe(requests[stage])}"


def _describe(request: Request) -> str:
    device = "GPU" if request.gpus_per_task else "CPU task"
    names = ", ".join(filter(None, (request.partition, request.account, request.qos, request.constraint)))
    return (
        f"{request.nodes} node{'s' * (request.nodes != 1)} x {request.tasks_per_node} {device}, "
        f"{request.cpus_per_task} CPUs a task, {duration(60 * request.minutes)} at a time{f' ({names})' if names else ''}"
    )


def _problems(plan: Plan, cost: Cost, budget: float | None) -> list[str]:
    """What would stop the run before anything is submitted; three lines at most."""
    from orchestrate.preflight import checks

    placements = [cost.placements[job_id] for job_id in plan.jobs if job_id in cost.left]
    if not placements:
        return []
    problems = list[str]()
    parts: list[Callable[[], None]] = [
        partial(cost.check_budget, budget),
        *checks(placements, placements[0].folder.store, cost.cluster),
    ]
    for part in parts:
        try:
            part()
        except ConfigError as error:
            problems.append(f"would stop: {error}")
            if len(problems) == 3:
                break
    return problems
