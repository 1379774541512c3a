"""The state of a job: its folder, its lock, squeue and sacct, combined into one word.

The first matching row decides. A dash matches anything. `began`: status.json says that an attempt of this SLURM job has
begun.

| result | lock | squeue                 | sacct              | status.json             | state |
|--------|------|------------------------|--------------------|-------------------------|---|
| whole  | -    | -                      | -                  | -                       | done, or stale |
| -      | held | -                      | -                  | -                       | running |
| -      | -    | waits, upstream failed | -                  | -                       | cancelled |
| -      | -    | waits, began           | -                  | -                       | requeued |
| -      | -    | waits                  | -                  | -                       | pending |
| -      | -    | COMPLETING             | -                  | an end of this job      | as recorded |
| -      | -    | runs                   | -                  | -                       | running |
| -      | -    | no answer              | -                  | an end of this job      | as recorded |
| -      | -    | no answer              | -                  | interrupted             | requeued (as far as known) |
| -      | -    | no answer              | -                  | began                   | running (as far as known) |
| -      | -    | no answer              | -                  | -                       | pending (as far as known) |
| -      | -    | ended, or not listed   | -                  | failed, cancelled, lost | as recorded |
| -      | -    | CANCELLED              | or CANCELLED       | -                       | cancelled |
| -      | -    | COMPLETED              | or COMPLETED       | -                       | lost |
| -      | -    | ended                  | or ended           | interrupted             | interrupted |
| -      | -    | ended                  | or ended           | -                       | failed |
| -      | -    | not listed             | nothing, or is off | interrupted             | interrupted |
| -      | -    | not listed             | nothing, or is off | a recent heartbeat      | running |
| -      | -    | not listed             | nothing, or is off | -                       | lost (pending at first) |
| -      | -    | never submitted        | -                  | failed, interrupted     | as recorded |
| -      | -    | never submitted        | -                  | running                 | interrupted |
| -      | -    | never submitted        | -                  | done                    | failed |
| -      | -    | never submitted        | -                  | -                       | new |

SLURM reuses ids. So a row of squeue counts only if its script is the one of the job's submission, and a row of sacct
only if it was submitted after the job was. A job that squeue no longer lists is looked up in sacct (if sacct does not
answer: no answer). If neither has it any more, the job folder decides; but first `scontrol show job` is asked, because
squeue may answer with an empty list by mistake, and a job that counts as lost is submitted again.

A result that is empty, torn or not finite is none: the note says so, and the job can be submitted again.

A finished job is `stale` if it was made by a different code version or from other data (see jobs/staleness.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from jigclu.job_folder import JobFolder, duration
from orchestrate.jobs.slurm_queue import (
    CLOCK_SKEW,
    Row,
    SlurmUnavailable,
    accounting_rows,
    find_row,
    group_of,
    queue,
    recent_queue,
    shown_rows,
)
from orchestrate.jobs.submissions import STORE_FAILED, batch_logs, read_group, slurm_id, submission

ACTIVE = ("running", "pending", "requeued")  # states of a job that needs no new submission to finish
SUBMITTABLE = ("new", "interrupted", "failed", "cancelled", "lost")  # states of a job that a run submits (again)
UNSUCCESSFUL = ("failed", "cancelled", "lost")  # final states that status.json keeps
HEADLINE = ("top1", "ap", "loss")  # metrics that a line about a finished job shows
SILENT = 600.0  # seconds without a heartbeat after which a running job is reported as silent
MEMORY = re.compile("exceeded (job )?memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)  # slurmstepd's words
NEVER, UPSTREAM = "DependencyNeverSatisfied", "upstream did not finish"


class State(NamedTuple):
    """A state of the table above. `note`: the reason in a few words; `slurm_id`, `row`: SLURM's id and row of the job;
    `no_answer`: SLURM's error message if it did not answer."""

    name: str
    note: str = ""
    slurm_id: str = ""
    row: Row | None = None
    no_answer: str = ""


def running_now(folder: JobFolder) -> bool:
    """Whether a worker holds the job's lock: it is alive, whatever happened to the process that started it."""
    lock = folder.lock_path()
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            # Shared, and only for a moment: a worker that finds the lock taken tries again.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def state_of(folder: JobFolder) -> str:
    """The name of one job's state; the queue may be up to two seconds old."""
    return look([folder], fresh=False)[folder.id].name


def look(folders: Iterable[JobFolder], *, fresh: bool = True) -> dict[str, State]:
    """The states of these jobs of one store, by id.

    At most one squeue, and one sacct for jobs that squeue does not list.
    """
    folders = list(folders)
    states: dict[str, State] = {}
    submitted: list[Submitted] = []
    groups: dict[str, dict[str, Any]] = {}
    for folder in folders:
        if folder.done:
            states[folder.id] = State("done")
        elif name := (marker := submission(folder)).get("group"):
            submitted.append(Submitted(folder, marker, groups.setdefault(name, read_group(folder.store, name))))
        else:
            states[folder.id] = _local_state(folder)
    if submitted:
        states |= _slurm_states(submitted, fresh)
    return {folder.id: _with_problems(folder, states[folder.id]) for folder in folders}


def _with_problems(folder: JobFolder, state: State) -> State:
    """The state, its note extended by what is wrong with the folder's files; nothing is for a finished job."""
    if state.name == "done" or not (problems := folder.problems):
        return state
    again = "; it will run again" if state.name in SUBMITTABLE else ""
    return state._replace(note="; ".join(filter(None, (state.note, *problems))) + again)


class Submitted(NamedTuple):
    """A job that sbatch was called for: its folder, submission.json and group.json."""

    folder: JobFolder
    marker: dict[str, Any]
    group: dict[str, Any]

    def id_and_row(self, rows: dict[str, Row], bases: dict[str, str]) -> tuple[str, Row | None]:
        """The job's SLURM id ("" if it was not recorded and the queue does not have the job) and its row in the queue.

        `bases`: ids that the queue has for groups whose id was not recorded, because the orchestrator died or because
        sbatch failed although SLURM had accepted the job.
        """
        name = self.marker["group"]
        job_id = slurm_id(self.marker, {**self.group, "slurm_id": self.group.get("slurm_id") or bases.get(name)}) or ""
        row = find_row(rows, job_id)
        return job_id, row if row and group_of(row) == name else None


def base_ids(rows: dict[str, Row]) -> dict[str, str]:
    """SLURM's id of each group that is in the queue."""
    return {group_of(row): key.partition("_")[0] for key, row in rows.items()}


def _slurm_states(submitted: list[Submitted], fresh: bool) -> dict[str, State]:
    no_answer, no_accounting, rows, past = "", "", dict[str, Row](), dict[str, Row]()
    try:
        rows = queue() if fresh else recent_queue()
        bases = base_ids(rows)
        if not fresh and not all(_waits_or_runs(job.id_and_row(rows, bases)[1]) for job in submitted):
            rows = recent_queue(0)  # never conclude from an old listing that a job has left the queue
    except SlurmUnavailable as error:
        no_answer = str(error)
    bases = base_ids(rows)
    in_queue = {job.folder.id: job.id_and_row(rows, bases) for job in submitted}
    gone: dict[str, float] = {}  # SLURM id of a job that squeue does not list -> when it was submitted
    for job in submitted:
        job_id, row = in_queue[job.folder.id]
        if job_id and not row:
            gone[job_id] = job.marker["submitted"]
    if gone and not no_answer:
        try:
            past = accounting_rows(gone, gone)
            in_queue |= _shown(submitted, in_queue, gone.keys() - past.keys())
        except SlurmUnavailable as error:
            no_accounting = str(error)
    states = {}
    for folder, marker, group in submitted:
        job_id, row = in_queue[folder.id]
        if not job_id and (not no_answer or group.get("refused")):
            states[folder.id] = _local_state(folder)
            continue
        unanswered = no_answer or (no_accounting if not row else "")
        states[folder.id] = decide_state(folder, job_id, row or past.get(job_id), unanswered, marker["submitted"])
    return states


def _shown(
    submitted: list[Submitted], in_queue: dict[str, tuple[str, Row | None]], forgotten: set[str]
) -> dict[str, tuple[str, Row | None]]:
    """(SLURM id, row) of the forgotten jobs that scontrol still shows, by job id. Raises SlurmUnavailable."""
    rows = shown_rows(forgotten)
    found: dict[str, tuple[str, Row | None]] = {}
    for job in submitted:
        job_id, _ = in_queue[job.folder.id]
        row = rows.get(job_id) if job_id in forgotten else None
        if row and group_of(row) == job.marker["group"]:
            found[job.folder.id] = job_id, row
    return found


def _waits_or_runs(row: Row | None) -> bool:
    return row is not None and not row.ended


def _local_state(folder: JobFolder) -> State:
    """The state of a job that was never submitted to SLURM, or that SLURM rejected."""
    if running_now(folder):
        return State("running", _silence(folder.status))
    status = folder.status
    if folder.done:  # it finished since the caller checked
        return State("done")
    recorded, message = str(status.get("state", "new")), str(status.get("message") or "")
    if recorded == "running":
        return State("interrupted", "its process is gone: killed, or out of memory")
    if recorded == "pending":
        return State("new")
    if recorded == "done":
        return State("failed", "it left no result")
    return State(recorded, message)


def decide_state(folder: JobFolder, job_id: str, row: Row | None, no_answer: str = "", submitted: float = 0.0) -> State:
    """The table above, for a job that SLURM knows as `job_id`. `row`: squeue's, else sacct's, else None."""
    status = folder.status
    of_this = status.get("slurm_job_id") == job_id and status.get("state") != "pending"
    recorded, message = str(status.get("state", "")) if of_this else "", str(status.get("message") or "")
    # `cancelled` and `lost` are recorded by the orchestrator, possibly for a job that never started.
    began = of_this and recorded not in ("cancelled", "lost")
    if running_now(folder):
        return State("running", _silence(status), job_id, row)
    if no_answer:
        name, note = _without_answer(recorded, message, began)
    elif row and row.waits:
        name, note = "requeued" if began else "pending", row.reason
        if row.reason == NEVER:
            name, note = "cancelled", UPSTREAM
    elif row and not row.ended and not (recorded in UNSUCCESSFUL and row.state == "COMPLETING"):
        name, note = "running", _silence(status) if recorded == "running" else "starting"
    else:
        with contextlib.suppress(OSError):
            os.listdir(folder.path)  # makes a network file system show what another node wrote
        name, note = _ended_state(folder, row, recorded, message)
        if name == "lost" and not recorded and time.time() - submitted < CLOCK_SKEW:
            name, note = "pending", "SLURM does not list it yet"
        if name == "lost" and row is None and recorded == "running" and abs(age := _heartbeat_age(status)) < SILENT:
            name, note = "running", f"SLURM does not list it, but its heartbeat is {duration(age)} old"
    if folder.done:
        return State("done")
    return State(name, note, job_id, row, no_answer)


def _without_answer(recorded: str, message: str, began: bool) -> tuple[str, str]:
    """State and note of a job while SLURM does not answer: what its folder says."""
    if recorded in UNSUCCESSFUL:
        return recorded, message
    if recorded == "interrupted":
        return "requeued", "as far as is known"
    return "running" if began else "pending", "as far as is known"


def _ended_state(folder: JobFolder, row: Row | None, recorded: str, message: str) -> tuple[str, str]:
    """State and note of a job that neither waits nor runs and has no result."""
    if recorded in UNSUCCESSFUL:
        return recorded, message
    if row is None and recorded != "interrupted":
        return "lost", "SLURM has no record of it, and it left no result"
    if row and row.state == "CANCELLED":
        if row.reason == NEVER:
            return "cancelled", UPSTREAM
        return "cancelled", message if recorded == "interrupted" else "by scancel"
    if row and row.state == "COMPLETED":
        return "lost", "SLURM says COMPLETED, but it left no result"
    if row is None or recorded == "interrupted":
        return "interrupted", message
    return "failed", _cause(row, folder)


def _cause(row: Row, folder: JobFolder) -> str:
    """Why a job ended that could not report its own error, from SLURM's state and exit code."""
    if row.state == "FAILED" and any(MEMORY.search(path.read_text(errors="replace")) for path in batch_logs(folder)):
        # If SLURM enforces memory without cgroups, its state does not say so, only the log does.
        row = dataclasses.replace(row, state="OUT_OF_MEMORY")
    node = f" on {row.nodes}" if row.nodes else ""
    if row.exit_code.endswith(":53"):  # what SLURM reports if it cannot open the job's log
        return f"SLURM could not open its log{node}: is the store writable from there?"
    if row.exit_code.startswith(f"{STORE_FAILED}:"):
        return f"its store could not be written{node}: full, or read-only (exit code {STORE_FAILED})"
    if row.state == "FAILED" and (error := _last_error(folder, row.id)):
        return f"{error} (SLURM: FAILED{node})"
    causes = {
        "OUT_OF_MEMORY": "out of memory: raise mem_gb in the cluster file",
        "NODE_FAIL": "its node was lost, and SLURM did not start it again",
        "TIMEOUT": "reached its time limit before it could save: raise minutes in the cluster file",
        "PREEMPTED": "preempted, and SLURM did not start it again",
        "BOOT_FAIL": "its node did not start",
        "DEADLINE": "its deadline passed",
    }
    code = f", exit code {row.exit_code}" if row.exit_code not in ("", "0:0") else ""
    cause = causes.get(row.state, "died without an error message: killed by hand, or out of memory")
    return f"{cause} (SLURM: {row.state}{node}{code})"


def _last_error(folder: JobFolder, job_id: str) -> str:
    """The error of a rank other than 0, which cannot write the status: the last line of a traceback in its log."""
    for path in sorted(folder.path.glob(f"logs/{job_id}_[1-9]*_log.out")):
        for text in reversed(path.read_text(errors="replace").splitlines()[-200:]):
            if re.match(r"[\w.]*(Error|Exception): ", text):
                return f"rank {path.name.removeprefix(f'{job_id}_').split('_')[0]}: {text[:300]}"
    return ""


def _silence(status: dict[str, Any]) -> str:
    quiet = _heartbeat_age(status)
    return f"no heartbeat for {duration(quiet)}" if quiet > SILENT else ""


def _heartbeat_age(status: dict[str, Any]) -> float:
    """Seconds since the job last wrote its status; 0 if it never did."""
    return time.time() - float(status.get("heartbeat", time.time()))


def record_ends(folders: Iterable[JobFolder], states: dict[str, State]) -> None:
    """Write to status.json how jobs ended that could not do so themselves: for MLflow, and before SLURM forgets it."""
    for folder in folders:
        state, status = states[folder.id], folder.status
        recorded = status.get("state")
        ended = state.name in UNSUCCESSFUL or (state.name == "interrupted" and recorded == "running")
        if ended and recorded != "done" and (recorded, status.get("message")) != (state.name, state.note):
            kept: dict[str, Any] = {key: status[key] for key in ("heartbeat", "host", "pid") if key in status}
            job_id = state.slurm_id or status.get("slurm_job_id")
            folder.set_status(state.name, message=state.note, slurm_job_id=job_id, **kept)


def headline(result: dict[str, Any]) -> str:
    """`top1 61.20  loss 1.53`: a finished job's most important metrics."""
    metrics = result.get("metrics", {})
    return "  ".join(f"{name} {value:.2f}" for name, value in metrics.items() if name in HEADLINE)


def progress(status: dict[str, Any]) -> str:
    """`epoch 3/30  4 min 12 s left  loss 24.130  512 images/s`."""
    if not status.get("steps") or not status.keys() >= {"epoch", "epochs", "seconds_left", "loss", "images_per_second"}:
        return str(status.get("message") or status.get("state", "new"))
    return (
        f"epoch {status['epoch']}/{status['epochs']}  {duration(status['seconds_left'])} left  "
        f"loss {status['loss']:.3f}  {status['images_per_second']:.0f} images/s"
    )
