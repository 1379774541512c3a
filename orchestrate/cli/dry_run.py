"""`run.py --dry-run`: the job graph, what is cached, and the estimated cost."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from functools import partial

from jigclu.config import ConfigError
from jigclu.job_folder import clock
from orchestrate import clusters
from orchestrate.clusters import Request
from orchestrate.console import print_line
from orchestrate.cost.plan_cost import Cost
from orchestrate.jobs.snapshot import STAGE_MODULES, stage_digest
from orchestrate.jobs.states import stale
from orchestrate.planning.plan import Job, Plan


def dry_run(plan: Plan, states: dict[str, str], cost: Cost, args: argparse.Namespace) -> int:
    """Print the plan's jobs as a tree, then totals, wall time and what would stop the run."""
    digests = {stage: stage_digest(stage) for stage in STAGE_MODULES}
    downstream = plan.downstream()

    def print_tree(job: Job, depth: int) -> None:
        state = "stale" if stale(job.stage, cost.placements[job.id].folder, digests) else states[job.id]
        cells = " ".join(shlex.quote(key) for key in sorted({use.cell for use in job.uses})) or "shared"
        hours = clock(3600 * cost.hours[job.id])
        print_line(f"{'  ' * depth}{job.id}  {state:11s} {hours:>9s} {cost.kinds[job.id]}  {job.name}  [{cells}]")
        for dependent in downstream[job.id]:
            print_tree(dependent, depth + 1)

    for job in plan.jobs.values():
        if not job.upstream:
            print_tree(job, 0)
    cached = len(plan.jobs) - len(cost.left)
    print_line(
        f"jobs: {plan.naive} naive, {len(plan.jobs)} unique, {cached} cached, "
        f"{len(cost.left)} to run on {cost.cluster.name}"
    )
    for line in cost.totals():
        print_line(f"{line} (rates: {cost.source})")
    print_line(_wall_time(cost, args.gpus))
    for line in (*_requests(plan, cost), *_problems(plan, cost, args.budget)):
        print_line(line)
    return 0


def _wall_time(cost: Cost, gpus: int | None) -> str:
    local = len(clusters.visible_gpus()) if cost.cluster.kind == "local" and cost.kind == "GPU" else 0
    devices = max(gpus or local or (1 if cost.kind == "CPU" else 4), cost.widest)
    least = f", the least that one of its jobs needs; {gpus} are too few" if (gpus or devices) < devices else ""
    wall = clock(3600 * cost.wall(devices))
    plural = "s" * (devices > 1)
    hint = " (--gpus N for another number)" if cost.kind == "GPU" else ""
    return f"estimated wall time on {devices} {cost.kind}{plural}{least}: {wall}{hint}"


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
        f"{request.cpus_per_task} CPUs a task, {request.minutes} min at a time{f' ({names})' if names else ''}"
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
