"""What a plan costs: device-hours in all and left to run, wall time on a number of devices, and a budget. No torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.config.machine import usable_cores
from orchestrate import clusters
from orchestrate.clusters import Cluster, Placement
from orchestrate.cost.measured import STATED_RATE, Measured
from orchestrate.cost.stated import BASIS, LOCAL_ONCE_HOURS, LOCAL_OVERHEAD_HOURS, wall_hours
from orchestrate.jobs.spent import device_hours
from orchestrate.planning.plan import Plan


class Cost:
    """The estimated device-hours of a plan's jobs, and which of them are left to run.

    A device is a GPU, or all the cores of a machine. `jobs`: how many are to run at once on this machine's CPU.
    `missing_gpus`: the plan is for GPUs and is to run here, where there are none; its hours are then GPU-hours all the
    same, since scale `paper` is for GPUs, but a budget counts what the jobs would take here.
    """

    def __init__(
        self, plan: Plan, store: Path, states: dict[str, str], cluster: Cluster, placements: dict[str, Placement],
        jobs: int = 1,
    ):  # fmt: skip
        self.plan, self.cluster, self.placements = plan, cluster, placements
        self.measured = Measured(store, cluster.path)
        local = cluster.kind == "local"
        self.gpus = len(clusters.visible_gpus()) if local else 0
        self.kinds = {
            job_id: "GPU" if (self.gpus or plan.scale == "paper" if local else place.request.gpus_per_task) else "CPU"
            for job_id, place in placements.items()
        }
        self.kind = "GPU" if "GPU" in self.kinds.values() else "CPU"  # the unit of a budget
        self.missing_gpus = local and self.kind == "GPU" and not self.gpus
        self.slots = min(jobs, len(usable_cores())) if local and self.kind == "CPU" else 1  # jobs at once on one CPU
        self.by_job = {job.id: self._estimate(job.id, self.kinds[job.id]) for job in plan.jobs.values()}
        self.hours = {job_id: hours for job_id, (hours, _) in self.by_job.items()}
        self.left = {job_id: hours for job_id, hours in self.hours.items() if states[job_id] != "done"}

    def _estimate(self, job_id: str, kind: str) -> tuple[float, str]:
        devices = self.ranks(job_id) if kind == "GPU" else 1 / self.slots
        return self.measured.hours(self.plan.jobs[job_id], kind, devices)

    def check_budget(self, budget: float | None) -> None:
        """Raises ConfigError if the jobs left to run are estimated at more than the budget."""
        if budget is None:
            return
        kind = "CPU" if self.missing_gpus else self.kind
        counted = [job_id for job_id in self.left if job_id in self.plan.jobs and self.kinds[job_id] == self.kind]
        left = sum(self._estimate(job_id, kind)[0] if self.missing_gpus else self.left[job_id] for job_id in counted)
        if left > budget:
            here = " (this machine has no GPU)" if self.missing_gpus else ""
            raise ConfigError(
                f"an estimated {left:.2f} {kind}-hours are left to run{here}, the budget is {budget:g}: "
                "nothing was submitted (--dry-run lists the jobs; choose fewer --cells or another --scale)"
            )

    def ranks(self, job_id: str) -> int:
        """Devices that the job uses at the same time."""
        return self.placements[job_id].request.ranks if self.cluster.kind == "slurm" else 1

    def wall_of(self, job_id: str) -> float:
        """Hours from the start to the end of one job."""
        return self.hours[job_id] / (self.ranks(job_id) if self.kinds[job_id] == "GPU" else 1 / self.slots)

    def wall(self, devices: int) -> float:
        """Hours until the jobs left to run are done on this many GPUs, or with this many jobs at once on one CPU."""
        jobs = self.plan.jobs
        overhead = LOCAL_OVERHEAD_HOURS if self.cluster.kind == "local" else 0.0
        times = {
            job_id: ((self.wall_of(job_id) + overhead) * self.ranks(job_id), self.ranks(job_id), jobs[job_id].upstream)
            for job_id in jobs
            if job_id in self.left
        }
        return wall_hours(times, devices) + (LOCAL_ONCE_HOURS if overhead and times else 0.0)

    @property
    def widest(self) -> int:
        """Most devices that a job left to run uses at the same time."""
        return max((self.ranks(job_id) for job_id in self.left), default=1)

    def cpu_wall(self) -> float:
        """Hours until the jobs left to run are done one after the other on this machine's CPU."""
        return sum(self._estimate(job_id, "CPU")[0] for job_id in self.left)

    def totals(self) -> list[str]:
        """`estimated, start-up included: 3.0 GPU-h, 2.0 GPU-h of it to run`; a line of CPU-h if there are any."""
        lines = []
        for kind in sorted(set(self.kinds.values()), reverse=True):
            jobs = [job for job in self.plan.jobs.values() if self.kinds[job.id] == kind]
            apart = sum(self.hours[job.id] * job.demand for job in jobs)
            total = sum(self.hours[job.id] for job in jobs)
            left = [self.left[job.id] for job in jobs if job.id in self.left]
            to_run = f"{device_hours(sum(left), kind)} of it to run" if left else "nothing of it to run"
            words = [device_hours(total, kind), "all of it to run" if len(left) == len(jobs) else to_run]
            words += [f"{device_hours(apart, kind)} without sharing"] if any(job.demand > 1 for job in jobs) else []
            lines.append(f"estimated, start-up included: {', '.join(words)}")
        return lines

    def basis(self) -> list[str]:
        """Sentences: what the estimates are based on, and how good earlier ones were."""
        count = Counter(by for _, by in self.by_job.values())
        stated = count.pop(STATED_RATE, 0)
        sentences = [f"{_jobs(number)} estimated from {by}" for by, number in count.items()]
        if stated:
            basis = " and ".join(BASIS[kind] for kind in sorted(set(self.kinds.values()), reverse=True))
            sentences.append(f"{_jobs(stated)} estimated from {STATED_RATE}, {basis}")
        if left_out := self.measured.left_out:
            sentences.append(f"{_jobs(left_out)} of the store not used: other programs slowed them down")
        if graded := self.measured.graded():
            sentences.append(f"until now {graded}")
        return sentences


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"
