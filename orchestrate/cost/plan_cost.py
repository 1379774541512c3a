"""What a plan costs: device-hours in all and left to run, wall time on a number of devices, and a budget. No torch."""

from __future__ import annotations

from pathlib import Path

from jigclu.config import ConfigError
from orchestrate import clusters
from orchestrate.clusters import Cluster, Placement
from orchestrate.cost.measured import STATED_RATE, Measured
from orchestrate.cost.stated import wall_hours
from orchestrate.planning.plan import Plan


class Cost:
    """The estimated hours of a plan's jobs, on one GPU or on a machine's CPU, and which of them are left to run."""

    def __init__(
        self, plan: Plan, store: Path, states: dict[str, str], cluster: Cluster, placements: dict[str, Placement]
    ):
        self.plan, self.cluster, self.placements = plan, cluster, placements
        self.measured = Measured(store, cluster.path)
        gpus_here = bool(clusters.visible_gpus()) or plan.scale == "paper"
        self.kinds = {
            job_id: "GPU" if (place.request.gpus_per_task if cluster.kind == "slurm" else gpus_here) else "CPU"
            for job_id, place in placements.items()
        }
        self.kind = "GPU" if "GPU" in self.kinds.values() else "CPU"  # the unit of a budget
        self.by_job = {job.id: self.measured.hours(job, self.kinds[job.id]) for job in plan.jobs.values()}
        self.hours = {job_id: hours for job_id, (hours, _) in self.by_job.items()}
        self.left = {job_id: hours for job_id, hours in self.hours.items() if states[job_id] != "done"}

    def check_budget(self, budget: float | None) -> None:
        """Raises ConfigError if the jobs left to run are estimated at more than the budget."""
        counted = self.left.keys() & self.plan.jobs.keys()
        left = sum(self.left[job_id] for job_id in counted if self.kinds[job_id] == self.kind)
        if budget is not None and left > budget:
            raise ConfigError(
                f"an estimated {left:.2f} {self.kind}-hours are left to run, the budget is {budget:g}: "
                "nothing was submitted (--dry-run lists the jobs; choose fewer --cells or another --scale)"
            )

    def ranks(self, job_id: str) -> int:
        """Devices that the job uses at the same time."""
        return self.placements[job_id].request.ranks if self.cluster.kind == "slurm" else 1

    def wall(self, devices: int) -> float:
        """Hours until the jobs left to run are done on this many devices."""
        jobs = self.plan.jobs
        return wall_hours(
            {job_id: (hours, self.ranks(job_id), jobs[job_id].upstream) for job_id, hours in self.left.items()}, devices
        )

    @property
    def widest(self) -> int:
        """The most devices that a single job of those left to run uses at the same time."""
        return max(map(self.ranks, self.left), default=1)

    def totals(self) -> list[str]:
        """`estimated GPU-hours: 3.00 naive, 2.00 unique, 1.00 to run`, and a line of CPU-hours if there are any."""
        lines = []
        for kind in sorted(set(self.kinds.values()), reverse=True):
            jobs = [job for job in self.plan.jobs.values() if self.kinds[job.id] == kind]
            naive = sum(self.hours[job.id] * job.demand for job in jobs)
            unique = sum(self.hours[job.id] for job in jobs)
            left = sum(self.left.get(job.id, 0.0) for job in jobs)
            lines.append(f"estimated {kind}-hours: {naive:.2f} naive, {unique:.2f} unique, {left:.2f} to run")
        return lines

    @property
    def source(self) -> str:
        """How many of the estimates come from earlier jobs of the store, and how many from the stated rate."""
        measured = sum(by != STATED_RATE for _, by in self.by_job.values())
        stated = len(self.by_job) - measured
        parts = [f"{measured} jobs by earlier jobs of the store"] if measured else []
        parts += [f"{stated} jobs by {STATED_RATE} (orchestrate/cost/stated.py)"] if stated else []
        return "; ".join([", ".join(parts), *filter(None, [self.measured.graded()])])
