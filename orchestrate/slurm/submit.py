"""Jobs on SLURM: jobs alike in resources as one array, upstream by afterok. Fire and forget, or --wait.

What a crash leaves at any moment is found again. A group of jobs is one sbatch command: first every job's submission.json
names the group, then sbatch is called, then group.json gets its id. Whoever finds a group without one looks for
its script in the queue.
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
from orchestrate.jobs.slurm_queue import SlurmUnavailable, ask, queue
from orchestrate.jobs.snapshot import freeze
from orchestrate.jobs.states import IN_HAND, base_ids, look
from orchestrate.jobs.submissions import group, note_group, note_submission, squeue_name, submission, submissions
from orchestrate.planning.plan import Job, Plan
from orchestrate.slurm.script import SubmissionRejected, sbatch, write_pickle, write_script

ELSEWHERE = ""  # in place of a SLURM id: the job runs, but SLURM does not know it
# Of --test-only: what sbatch itself would take and let wait (nodes drained, a partition down).
FOR_NOW = re.compile("not available|busy|down|drained", re.IGNORECASE)
LARGEST_ARRAY = 1000  # tasks, where the cluster does not say: SLURM's own default


@dataclass
class Group:
    """Jobs that one sbatch command submits: alike in resources and in what they wait for."""

    request: Request
    after: tuple[str, ...]
    jobs: list[Job] = field(default_factory=list)


def submit(plan: Plan, store: Path, cluster: Cluster, placements: dict[str, Placement]) -> dict[str, str]:
    """Submit what is neither done nor in SLURM's hands; returns SLURM ids by job id.

    ConfigError carries sbatch's own message: of a request that it refuses nothing at all is submitted.
    """
    with locked(store / ".submit.lock", inherited=True):
        tree = freeze(store)  # inside: `clean` takes the same lock
        _settle(plan, store)
        states = look(placements[job_id].folder for job_id in plan.jobs)
        if silent := next((state.no_answer for state in states.values() if state.no_answer), ""):
            raise ConfigError(f"SLURM does not answer, so nothing is submitted: {silent}")
        ids: dict[str, str] = {}
        count = Counter({"submitted": 0})  # first, in what is said
        wanted: list[Job] = []
        for job in plan.jobs.values():
            state = states[job.id]
            if state.name == "done":
                count["done already"] += 1
            elif state.name in IN_HAND:
                ids[job.id] = state.slurm_id
                count["in the queue already" if state.slurm_id else "running here, without SLURM"] += 1
            elif any(ids.get(up) == ELSEWHERE for up in job.upstream):
                ids[job.id] = ELSEWHERE
                count["left out: upstream runs here, without SLURM"] += 1
            else:
                wanted.append(job)
        submitter = Submitter(store, cluster, tree, ids, [placements[job.id] for job in wanted])
        submitter.refuse_early()
        for level in _levels(wanted):
            submitter.submit(level)
    count["submitted"] = len(wanted)
    if wanted:
        print_line("they go on by themselves: `python -m orchestrate status` tells how they are")
    print_line("jobs: " + ", ".join(f"{number} {what}" for what, number in count.items() if number))
    return ids


def _levels(jobs: list[Job]) -> Iterator[list[Job]]:
    """The jobs, first those that wait for none of them, then those that wait for these, and so on."""
    waiting = {job.id for job in jobs}
    while waiting:
        level = [job for job in jobs if job.id in waiting and not waiting.intersection(job.upstream)]
        waiting -= {job.id for job in level}
        yield level


class Submitter:
    """One call's groups; `ids` grows as they are submitted."""

    def __init__(self, store: Path, cluster: Cluster, tree: Path, ids: dict[str, str], placements: list[Placement]):
        jobs = [placement.job for placement in placements]
        self.store, self.cluster, self.tree, self.ids, self.jobs = store, cluster, tree, ids, jobs
        self.requests = {placement.job.id: placement.request for placement in placements}
        # max_jobs: an array keeps count by itself, but only within itself; else every job waits for the last one of its lane.
        kinds = Counter(
            (job.stage, self.requests[job.id], bool(self.requests.keys() & set(job.upstream))) for job in jobs
        )
        self.largest = _largest_array()
        several = len(kinds) > 1 or bool(ids) or max(kinds.values(), default=0) > self.largest
        self.alone = bool(cluster.max_jobs) and several and len(jobs) + len(ids) > (cluster.max_jobs or 0)
        self.lanes = [given for given in ids.values() if given][-(cluster.max_jobs or 1) :]
        self.measured = measured.Measured(store, cluster.path)

    def refuse_early(self) -> None:
        """Ask sbatch whether it would take each kind of job, before any is submitted."""
        for request in dict.fromkeys(self.requests.values()):
            job = next(job for job in self.jobs if self.requests[job.id] == request)
            name = self._new_group(Group(request, (), [job]))
            try:
                self._sbatch(name, "--test-only")
            except SubmissionRejected as error:
                if not FOR_NOW.search(str(error)):
                    told = f"sbatch refused {job.name}: {error} (cluster {self.cluster.name}; nothing was submitted)"
                    raise ConfigError(told) from None
            finally:
                shutil.rmtree(submissions(self.store) / name)

    def submit(self, level: list[Job]) -> None:
        """Jobs that do not wait for one another."""
        largest = 1 if self.alone else self.largest
        groups: dict[object, Group] = {}
        for job in level:
            after = tuple(dict.fromkeys(self.ids[up] for up in job.upstream if up in self.ids))
            key: object = job.id if self.alone else (job.stage, self.requests[job.id], after)
            group = groups.setdefault(key, Group(self.requests[job.id], after))
            group.jobs.append(job)
            if len(group.jobs) == largest:
                self._submit_group(groups.pop(key))
        for group in groups.values():
            self._submit_group(group)

    def _new_group(self, group: Group, lane: str | None = None) -> str:
        """A script for the group, under a new name; its jobs do not know of it yet. `lane`: a job that must have ended."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        first = group.jobs[0]
        experiments = set.union(*(job.experiments for job in group.jobs))
        title = (
            squeue_name(experiments, first.stage, first.label, first.id) if len(group.jobs) == 1
            else squeue_name(experiments, first.stage, f"{len(group.jobs)}-jobs", name[-6:])
        )  # fmt: skip
        after = [f"afterok:{':'.join(group.after)}"] if group.after else []
        after += [f"afterany:{lane}"] if lane else []
        paths = [job.folder(self.store).path for job in group.jobs]
        write_script(self.cluster, group.request, submissions(self.store) / name, title, self.tree, paths, after)
        note_group(self.store, name, name=title, jobs=[job.id for job in group.jobs])
        return name

    def _submit_group(self, group: Group) -> None:
        full = self.alone and len(self.lanes) >= (self.cluster.max_jobs or 0)
        name = self._new_group(group, self.lanes.pop(0) if full else None)
        for index, job in enumerate(group.jobs):
            folder = job.folder(self.store)
            write_pickle(folder.path, group.request.minutes)
            if folder.status.get("state") != "pending":
                folder.set_status("pending", message="submitted again")
            note_submission(
                folder, cluster="slurm", site=self.cluster.path, group=name, index=index, submitted=time.time(),
                max_requeues=self.cluster.max_requeues, **self.measured.note(job, group.request),
            )  # fmt: skip
        try:
            base = self._sbatch(name)
        except SubmissionRejected as error:
            note_group(self.store, name, refused=str(error))
            raise ConfigError(
                f"sbatch refused {group.jobs[0].name}: {error} (what was submitted before it stays; the same command goes on)"
            ) from None
        note_group(self.store, name, slurm_id=base)
        for index, job in enumerate(group.jobs):
            self.ids[job.id] = f"{base}_{index}" if len(group.jobs) > 1 else base
        self.lanes.append(base)
        first = group.jobs[0]
        what = f"{first.id}  {first.name}" if len(group.jobs) == 1 else f"{len(group.jobs)} jobs  {first.name} ..."
        print_line(f"submitted {base:>8s}  {what}")

    def _sbatch(self, name: str, *more: str) -> str:
        script = submissions(self.store) / name / "submission.sh"
        try:
            return sbatch(script, *more)
        except SubmissionRejected as error:
            if more:
                raise
            try:  # a controller that answers too late has taken the job all the same
                found = base_ids(queue()).get(name)
            except SlurmUnavailable as silent:
                raise SubmissionRejected(
                    f"{error}; whether it was taken all the same, SLURM does not say ({silent})"
                ) from None
            if found:
                return found
            raise


def _largest_array() -> int:
    """Tasks of one array that the cluster allows."""
    try:
        line = next(line for line in ask("scontrol", "show", "config").splitlines() if line.startswith("MaxArraySize"))
        return max(1, int(line.split("=")[1]) - 1)
    except (SlurmUnavailable, StopIteration, ValueError):
        return LARGEST_ARRAY


def _settle(plan: Plan, store: Path) -> None:
    """Give every group of the plan's jobs that was about to be submitted its id, where the queue has it. ConfigError: no answer."""
    asked = {submission(job.folder(store)).get("group") for job in plan.jobs.values()}
    open_ones = [name for name in asked if name and "slurm_id" not in group(store, name)]
    if not open_ones:
        return
    try:
        rows = queue()
    except SlurmUnavailable as error:
        raise ConfigError(f"SLURM does not answer, so nothing is submitted: {error}") from None
    bases = base_ids(rows)
    for name in open_ones:
        if base := bases.get(name):
            note_group(store, name, slurm_id=base)
