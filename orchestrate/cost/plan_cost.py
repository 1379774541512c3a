"""What a plan costs: device-hours asked for and left, wall time on a number of devices, and a budget. No torch."""

from __future__ import annotations

from pathlib import Path

from jigclu.config import ConfigError
from orchestrate import clusters
from orchestrate.cost.measured import Measured
from orchestrate.cost.stated import wall_hours
from orchestrate.planning.plan import Plan


class Cost:
    """What a plan's jobs are estimated to take, in hours of one GPU (or of a machine's CPU), and what of it is left to run."""

    def __init__(self, plan: Plan, store: Path, states: dict[str, str], cluster: clusters.Cluster):
        self.plan, self.cluster, self.measured = plan, cluster, Measured(store, cluster.path)
        self.requests = {job.id: cluster.request(job.stage, job.scale) for job in plan.jobs.values()}
        here = bool(clusters.visible_gpus()) or plan.scale == "paper"
        self.kinds = {
            one: "GPU" if (request.gpus_per_task if cluster.kind == "slurm" else here) else "CPU"
            for one, request in self.requests.items()
        }
        self.kind = "GPU" if "GPU" in self.kinds.values() else "CPU"  # what a budget is counted in
        self.by_job = {job.id: self.measured.hours(job, self.kinds[job.id]) for job in plan.jobs.values()}
        self.hours = {job_id: hours for job_id, (hours, _) in self.by_job.items()}
        self.left = {job_id: hours for job_id, hours in self.hours.items() if states[job_id] != "done"}

    def check_budget(self, budget: float | None) -> None:
        """ConfigError where what is left is more than the budget."""
        counted = self.left.keys() & self.plan.jobs.keys()
        left = sum(self.left[one] for one in counted if self.kinds[one] == self.kind)
        if budget is not None and left > budget:
            raise ConfigError(
                f"an estimated {left:.2f} {self.kind}-hours are left to run, the budget is {budget:g}: nothing was submitted "
                "(--dry-run lists the jobs; fewer --cells, another --scale)"
            )

    def wall(self, devices: int) -> float:
        """Hours until what is left is done on so many devices."""
        jobs, on_slurm = self.plan.jobs, self.cluster.kind == "slurm"
        left = self.left.items()
        return wall_hours(
            {one: (hours, self.requests[one].ranks if on_slurm else 1, jobs[one].upstream) for one, hours in left},
            devices,
        )

    @property
    def widest(self) -> int:
        """Devices that one of the jobs left takes at a time, at most."""
        on_slurm = self.cluster.kind == "slurm"
        return max((self.requests[one].ranks for one in self.left if on_slurm), default=1)

    def totals(self) -> list[str]:
        """`estimated GPU-hours: 3.00 naive, 2.00 unique, 1.00 to run`, and the same of CPUs where some jobs take those."""
        told = []
        for kind in sorted(set(self.kinds.values()), reverse=True):
            of = [job for job in self.plan.jobs.values() if self.kinds[job.id] == kind]
            naive, unique = sum(self.hours[job.id] * job.asked for job in of), sum(self.hours[job.id] for job in of)
            left = sum(self.left.get(job.id, 0.0) for job in of)
            told.append(f"estimated {kind}-hours: {naive:.2f} naive, {unique:.2f} unique, {left:.2f} to run")
        return told

    @property
    def source(self) -> str:
        """Which of the estimates come from the store's own jobs."""
        measured = sum(by != "the stated rate" for _, by in self.by_job.values())
        stated = len(self.by_job) - measured
        parts = [f"{measured} jobs by the store's earlier ones"] if measured else []
        parts += [f"{stated} by the stated rate, see orchestrate/estimate.py"] if stated else []
        return "; ".join([", ".join(parts), *filter(None, [self.measured.graded()])])
