"""What a plan costs: device-hours asked for and left, wall time on a number of devices, and a budget. No torch."""

from __future__ import annotations

from pathlib import Path

from jigclu.config import ConfigError
from orchestrate import clusters
from orchestrate.estimate import wall_hours
from orchestrate.plan import Plan
from orchestrate.rates import Measured


class Cost:
    """What a plan's jobs are estimated to take, in hours of one GPU (or of a machine's CPU), and what of it is left to run."""

    def __init__(self, plan: Plan, store: Path, states: dict[str, str], cluster: clusters.Cluster):
        self.plan, self.cluster, self.measured = plan, cluster, Measured(store)
        gpus = cluster.gpus_per_task if cluster.kind == "slurm" else clusters.visible_gpus() or plan.scale == "paper"
        self.kind = "GPU" if gpus else "CPU"
        self.by_job = {job.id: self.measured.hours(job, self.kind) for job in plan.jobs.values()}
        self.hours = {job_id: hours for job_id, (hours, _) in self.by_job.items()}
        self.left = {job_id: hours for job_id, hours in self.hours.items() if states[job_id] != "done"}

    def hold_to(self, budget: float | None) -> None:
        """ConfigError where what is left is more than the budget."""
        left = sum(hours for job_id, hours in self.left.items() if job_id in self.plan.jobs)
        if budget is not None and left > budget:
            raise ConfigError(
                f"an estimated {left:.2f} {self.kind}-hours are left to run, the budget is {budget:g}: nothing was submitted "
                "(--dry-run lists the jobs; fewer --cells, another --scale)"
            )

    def wall(self, devices: int) -> float:
        """Hours until what is left is done on so many devices."""
        jobs = self.plan.jobs
        ranks = {
            stage: self.cluster.request(stage, self.plan.scale).ranks if self.cluster.kind == "slurm" else 1
            for stage in {job.stage for job in jobs.values()}
        }
        return wall_hours(
            {one: (self.left[one], ranks[jobs[one].stage], jobs[one].upstream) for one in self.left}, devices
        )

    @property
    def source(self) -> str:
        """Which of the estimates come from the store's own jobs."""
        measured = sum(by != "the stated rate" for _, by in self.by_job.values())
        stated = len(self.by_job) - measured
        parts = [f"{measured} jobs by the store's earlier ones"] if measured else []
        parts += [f"{stated} by orchestrate/estimate.py"] if stated else []
        return "; ".join([", ".join(parts), *filter(None, [self.measured.graded()])])
