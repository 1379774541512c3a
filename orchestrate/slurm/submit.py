"""Submission to SLURM: similar jobs as one array, dependencies through afterok. The orchestrator need not stay alive.

Killed at any moment, it leaves nothing that cannot be found again. A group of jobs is one sbatch command: first every
job's submission.json names the group, then sbatch is called, then its id is written to group.json. If a group has no
id, the next orchestrator looks for its script in the queue.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.files import locked
from orchestrate.clusters import Cluster, Placement, Request
from orchestrate.console import print_line
from orchestrate.cost import measured
from orchestrate.jobs.slurm_queue import SlurmUnavailable, queue, slurm_command
from orchestrate.jobs.snapshot import freeze
from orchestrate.jobs.states import ACTIVE, base_ids, look
from orchestrate.jobs.submissions import (
    SCRIPT,
    note_group,
    note_submission,
    read_group,
    squeue_name,
    submission,
    submissions_folder,
)
from orchestrate.planning.plan import Job, Plan
from orchestrate.slurm.script import SubmissionRejected, sbatch, write_pickle, write_script

OUTSIDE_SLURM = ""  # in place of a SLURM id: the job runs, but SLURM does not know it
# sbatch --test-only rejects a job because of these; sbatch itself accepts it and lets it wait (nodes drained, a
# partition down).
TEMPORARY = re.compile("not available|busy|down|drained", re.IGNORECASE)
DEFAULT_LARGEST_ARRAY = 1000  # tasks, if the cluster does not say: SLURM's own default


@dataclass
class Group:
    """Jobs that one sbatch command submits: they have the same resources and dependencies."""

    request: Request
    after: tuple[str, ...]
    jobs: list[Job] = field(default_factory=list)


class Throttle:
    """Keeps at most `max_jobs` of a command's jobs running at a time.

    An array's own limit (`--array=0-9%2`) counts only the tasks of that array, and a command's jobs are usually several
    arrays, since their stages, resources and dependencies differ. So every job is submitted on its own, in one of
    `max_jobs` lanes, and waits (afterany) until the job before it in its lane has ended. `active`: SLURM ids of the
    command's earlier jobs.
    """

    def __init__(self, max_jobs: int, active: list[str]):
        self.max_jobs, self.lanes = max_jobs, active[-max_jobs:]  # the last job of each lane, oldest first

    def take_lane(self) -> str | None:
        """The SLURM id that the next job must wait for; None while a lane is free."""
        return self.lanes.pop(0) if len(self.lanes) >= self.max_jobs else None

    def add(self, slurm_id: str) -> None:
        self.lanes.append(slurm_id)


def submit(plan: Plan, store: Path, cluster: Cluster, placements: dict[str, Placement]) -> dict[str, str]:
    """Submit the plan's jobs that are neither done nor active; returns SLURM ids by job id.

    ConfigError has sbatch's own message; if sbatch refuses one kind of job, nothing at all is submitted.
    """
    with locked(store / ".submit.lock", inherited=True):
        tree = freeze(store)  # under the lock, because `clean` takes the same one
        _recover_ids(plan, store)
        states = look(placements[job_id].folder for job_id in plan.jobs)
        if error := next((state.no_answer for state in states.values() if state.no_answer), ""):
            raise ConfigError(f"SLURM does not answer, so nothing is submitted: {error}")
        ids: dict[str, str] = {}
        count = Counter({"submitted": 0})  # the first number of the summary
        wanted: list[Job] = []
        for job in plan.jobs.values():
            state = states[job.id]
            if state.name == "done":
                count["done already"] += 1
            elif state.name in ACTIVE:
                ids[job.id] = state.slurm_id
                count["in the queue already" if state.slurm_id else "running here, without SLURM"] += 1
            elif any(ids.get(upstream_id) == OUTSIDE_SLURM for upstream_id in job.upstream):
                ids[job.id] = OUTSIDE_SLURM
                count["left out: upstream runs here, without SLURM"] += 1
            else:
                wanted.append(job)
        submitter = Submitter(store, cluster, tree, ids, [placements[job.id] for job in wanted])
        submitter.refuse_early()
        for level in _levels(wanted):
            submitter.submit(level)
    count["submitted"] = len(wanted)
    if wanted:
        print_line("they run unattended; `jigclu status` shows their states")
    print_line("jobs: " + ", ".join(f"{number} {what}" for what, number in count.items() if number))
    return ids


def _levels(jobs: list[Job]) -> Iterator[list[Job]]:
    """The jobs in order of dependency: first those without upstream in the list, then their dependents, and so on."""
    waiting = {job.id for job in jobs}
    while waiting:
        level = [job for job in jobs if job.id in waiting and not waiting.intersection(job.upstream)]
        waiting -= {job.id for job in level}
        yield level


class Submitter:
    """The groups of one command; `ids` (SLURM ids by job id) grows as they are submitted."""

    def __init__(self, store: Path, cluster: Cluster, tree: Path, ids: dict[str, str], placements: list[Placement]):
        jobs = [placement.job for placement in placements]
        self.store, self.cluster, self.tree, self.ids, self.jobs = store, cluster, tree, ids, jobs
        self.requests = {placement.job.id: placement.request for placement in placements}
        self.largest_array = _largest_array()
        self.throttle = self._throttle()
        self.measured = measured.Measured(store, cluster.path)

    def _throttle(self) -> Throttle | None:
        """None if there is no limit, if the jobs are within it, or if they are one array, which limits itself."""
        limit = self.cluster.max_jobs
        if not limit or len(self.jobs) + len(self.ids) <= limit:
            return None
        kinds = Counter(
            (job.stage, self.requests[job.id], bool(self.requests.keys() & set(job.upstream))) for job in self.jobs
        )
        if len(kinds) <= 1 and not self.ids and max(kinds.values(), default=0) <= self.largest_array:
            return None
        return Throttle(limit, [slurm_id for slurm_id in self.ids.values() if slurm_id != OUTSIDE_SLURM])

    def refuse_early(self) -> None:
        """Ask sbatch whether it would accept each kind of job, before any is submitted. Raises ConfigError."""
        for request in dict.fromkeys(self.requests.values()):
            job = next(job for job in self.jobs if self.requests[job.id] == request)
            name = self._new_group(Group(request, (), [job]))
            try:
                self._sbatch(name, "--test-only")
            except SubmissionRejected as error:
                if not TEMPORARY.search(str(error)):
                    raise ConfigError(
                        f"sbatch refused {job.name}: {error} (cluster {self.cluster.name}; nothing was submitted)"
                    ) from None
            finally:
                shutil.rmtree(submissions_folder(self.store) / name)

    def submit(self, level: list[Job]) -> None:
        """Submit jobs that do not wait for one another."""
        largest = 1 if self.throttle else self.largest_array
        groups: dict[object, Group] = {}
        for job in level:
            after = tuple(dict.fromkeys(self.ids[up] for up in job.upstream if up in self.ids))
            key: object = job.id if self.throttle else (job.stage, self.requests[job.id], after)
            group = groups.setdefault(key, Group(self.requests[job.id], after))
            group.jobs.append(job)
            if len(group.jobs) == largest:
                self._submit_group(groups.pop(key))
        for group in groups.values():
            self._submit_group(group)

    def _new_group(self, group: Group, previous_in_lane: str | None = None) -> str:
        """Write a script for the group, under a new name; no job's submission.json names it yet.

        `previous_in_lane`: SLURM id of a job that must have ended first.
        """
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        first = group.jobs[0]
        experiments = set.union(*(job.experiments for job in group.jobs))
        title = (
            squeue_name(experiments, first.stage, first.label, first.id) if len(group.jobs) == 1
            else squeue_name(experiments, first.stage, f"{len(group.jobs)}-jobs", name[-6:])
        )  # fmt: skip
        after = [f"afterok:{':'.join(group.after)}"] if group.after else []
        after += [f"afterany:{previous_in_lane}"] if previous_in_lane else []
        paths = [job.folder(self.store).path for job in group.jobs]
        write_script(self.cluster, group.request, submissions_folder(self.store) / name, title, self.tree, paths, after)
        note_group(self.store, name, name=title, jobs=[job.id for job in group.jobs])
        return name

    def _submit_group(self, group: Group) -> None:
        name = self._new_group(group, self.throttle.take_lane() if self.throttle else None)
        for index, job in enumerate(group.jobs):
            folder = job.folder(self.store)
            write_pickle(folder.path, group.request.minutes)
            if folder.status.get("state") != "pending":
                folder.set_status("pending", message="submitted again")
            note_submission(
                folder, cluster="slurm", site=self.cluster.path, group=name, index=index, submitted=time.time(),
                max_requeues=self.cluster.max_requeues, **self.measured.note(job, group.request),
            )  # fmt: skip
        first = group.jobs[0]
        try:
            base = self._sbatch(name)
        except SubmissionRejected as error:
            note_group(self.store, name, refused=str(error))
            raise ConfigError(
                f"sbatch refused {first.name}: {error} (earlier jobs stay submitted; the same command submits the rest)"
            ) from None
        note_group(self.store, name, slurm_id=base)
        for index, job in enumerate(group.jobs):
            self.ids[job.id] = f"{base}_{index}" if len(group.jobs) > 1 else base
        if self.throttle:
            self.throttle.add(base)
        what = f"{first.id}  {first.name}" if len(group.jobs) == 1 else f"{len(group.jobs)} jobs  {first.name} ..."
        print_line(f"submitted {base:>8s}  {what}")

    def _sbatch(self, name: str, *more: str) -> str:
        script = submissions_folder(self.store) / name / SCRIPT
        try:
            return sbatch(script, *more)
        except SubmissionRejected as error:
            if more:
                raise
            try:  # if the controller answered too late, it has accepted the job anyway
                found = base_ids(queue()).get(name)
            except SlurmUnavailable as no_answer:
                raise SubmissionRejected(
                    f"{error}; whether SLURM accepted it anyway is not known ({no_answer})"
                ) from None
            if found:
                return found
            raise


def _largest_array() -> int:
    """The most tasks that the cluster allows in one array."""
    try:
        config = slurm_command("scontrol", "show", "config")
        line = next(line for line in config.splitlines() if line.startswith("MaxArraySize"))
        return max(1, int(line.split("=")[1]) - 1)
    except (SlurmUnavailable, StopIteration, ValueError):
        return DEFAULT_LARGEST_ARRAY


def _recover_ids(plan: Plan, store: Path) -> None:
    """Record the SLURM id of each group of the plan's jobs that lacks one, if the queue has the group's script.

    ConfigError if SLURM does not answer.
    """
    names = {submission(job.folder(store)).get("group") for job in plan.jobs.values()}
    without_id = [name for name in names if name and "slurm_id" not in read_group(store, name)]
    if not without_id:
        return
    try:
        rows = queue()
    except SlurmUnavailable as error:
        raise ConfigError(f"SLURM does not answer, so nothing is submitted: {error}") from None
    bases = base_ids(rows)
    for name in without_id:
        if base := bases.get(name):
            note_group(store, name, slurm_id=base)
