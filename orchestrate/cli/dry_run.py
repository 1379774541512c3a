"""`run.py --dry-run`: the job graph, what is cached, and the estimated cost."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.job_folder import clock
from orchestrate import clusters
from orchestrate.console import print_line
from orchestrate.cost.plan_cost import Cost
from orchestrate.jobs.snapshot import STAGE_MODULES, stage_digest
from orchestrate.jobs.states import stale
from orchestrate.planning.plan import Job, Plan


def dry_run(plan: Plan, store: Path, states: dict[str, str], cost: Cost, args: argparse.Namespace) -> int:
    digests = {stage: stage_digest(stage) for stage in STAGE_MODULES}
    downstream = plan.downstream()

    def line(job: Job, depth: int) -> None:
        state = "stale" if stale(job.stage, job.folder(store), digests) else states[job.id]
        cells = " ".join(shlex.quote(key) for key in sorted({use.cell for use in job.uses})) or "shared"
        hours = clock(3600 * cost.hours[job.id])
        print_line(f"{'  ' * depth}{job.id}  {state:11s} {hours:>9s} {cost.kinds[job.id]}  {job.name}  [{cells}]")
        for below in downstream[job.id]:
            line(below, depth + 1)

    for job in plan.jobs.values():
        if not job.upstream:
            line(job, 0)
    cached = len(plan.jobs) - len(cost.left)
    where = cost.cluster.name
    print_line(
        f"jobs: {plan.naive} naive, {len(plan.jobs)} unique, {cached} cached, {len(cost.left)} to run on {where}"
    )
    for told in cost.totals():
        print_line(f"{told} (rates: {cost.source})")
    local = len(clusters.visible_gpus()) if cost.cluster.kind == "local" and cost.kind == "GPU" else 0
    devices = max(args.gpus or local or (1 if cost.kind == "CPU" else 4), cost.widest)
    least = (
        f", the least that one of its jobs takes; {args.gpus} are too few" if (args.gpus or devices) < devices else ""
    )
    wall = clock(3600 * cost.wall(devices))
    print_line(
        f"estimated wall time on {devices} {cost.kind}{'s' * (devices > 1)} at once{least}: {wall} (--gpus N for another number)"
    )
    for told in _on_cluster(plan, states, cost, args.budget):
        print_line(told)
    return 0


def _on_cluster(plan: Plan, states: dict[str, str], cost: Cost, budget: float | None) -> Iterator[str]:
    """What each stage asks of SLURM, and what would stop the run before anything is submitted."""
    from orchestrate.preflight import check_batch_divides

    left = [job for job in plan.jobs.values() if states[job.id] != "done"]
    for stage in sorted({job.stage for job in left}) if cost.cluster.kind == "slurm" else ():
        request = cost.cluster.request(stage, plan.scale)
        nodes, what = (
            f"{request.nodes} node{'s' * (request.nodes != 1)}",
            "GPU" if request.gpus_per_task else "CPU task",
        )
        names = ", ".join(filter(None, (request.partition, request.account, request.qos, request.constraint)))
        asked = f"{nodes} x {request.tasks_per_node} {what}, {request.cpus_per_task} CPUs a task, {request.minutes} min at a time"
        yield f"{stage}: {asked}{f' ({names})' if names else ''}"
    checks = [
        lambda: cost.check_budget(budget),
        *(lambda job=job: check_batch_divides(job, cost.cluster) for job in left),
    ]
    wrong = list[str]()
    for check in checks:
        try:
            check()
        except ConfigError as error:
            wrong.append(f"would stop: {error}")
    yield from wrong[:3]
