"""What a job is doing: its folder, its lock, squeue and sacct in one state.

The first line that fits decides. A dash: whatever it says. `began`: status.json says that an attempt of this SLURM job has begun.

| result.json | lock | squeue                | sacct               | status.json          | state     |
|-------------|------|-----------------------|---------------------|----------------------|-----------|
| there       | -    | -                     | -                   | -                    | done, or stale: made by other code |
| -           | held | -                     | -                   | -                    | running   |
| -           | -    | waits, upstream failed| -                   | -                    | cancelled |
| -           | -    | waits, began          | -                   | -                    | requeued  |
| -           | -    | waits                 | -                   | -                    | pending   |
| -           | -    | COMPLETING            | -                   | an end of this job   | as it says |
| -           | -    | runs                  | -                   | -                    | running   |
| -           | -    | no answer             | -                   | an end of this job   | as it says |
| -           | -    | no answer             | -                   | interrupted          | requeued, as far as is known |
| -           | -    | no answer             | -                   | began                | running, as far as is known |
| -           | -    | no answer             | -                   | -                    | pending, as far as is known |
| -           | -    | ended, or not there   | -                   | failed, cancelled, lost | as it says |
| -           | -    | CANCELLED             | or CANCELLED        | -                    | cancelled |
| -           | -    | COMPLETED             | or COMPLETED        | -                    | lost      |
| -           | -    | ended                 | or ended            | interrupted          | interrupted |
| -           | -    | ended                 | or ended            | -                    | failed    |
| -           | -    | not there             | nothing, or is off  | interrupted          | interrupted |
| -           | -    | not there             | nothing, or is off  | -                    | lost (just submitted: pending) |
| -           | -    | never asked           | -                   | failed, interrupted  | as it says |
| -           | -    | never asked           | -                   | running              | interrupted: its process is gone |
| -           | -    | never asked           | -                   | -                    | new       |

A row of squeue counts only where its script is that of the job's submission, one of sacct only where it was submitted after it:
ids are used again. A job that squeue no longer holds is looked for in sacct (where that is away: no answer); both may have let it
go, and what the folder says stands.
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

from jigclu.job_folder import JobFolder, clock
from orchestrate.jobs.slurm_queue import (
    CLOCKS_APART,
    Row,
    SlurmUnavailable,
    accounted,
    find,
    group_of,
    queue,
    queue_lately,
)
from orchestrate.jobs.submissions import batch_logs, group, slurm_id, submission

IN_HAND = ("running", "pending", "requeued")  # states of a job that goes on by itself
GOES_ON = ("new", "interrupted", "failed", "cancelled", "lost")  # states of a job that a run submits (again)
SETTLED = ("failed", "cancelled", "lost")  # ends that status.json keeps
SILENT = 600.0  # seconds without a heartbeat after which a running job is said to be silent
MEMORY = re.compile("exceeded (job )?memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)  # slurmstepd's words
NEVER, UPSTREAM = "DependencyNeverSatisfied", "what it builds on did not finish"


class State(NamedTuple):
    """A state of the table above; `note`: why, in a few words; `slurm_id`, `row`: what SLURM has of it; `no_answer`: its words."""

    name: str
    note: str = ""
    slurm_id: str = ""
    row: Row | None = None
    no_answer: str = ""


def running_now(folder: JobFolder) -> bool:
    """A worker holds the job's lock: however the process that started it ended, this one lives."""
    lock = folder.path / ".run.lock"
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: a worker that finds it so tries again
        except BlockingIOError:
            return True
    return False


def state_of(folder: JobFolder) -> str:
    return look([folder], fresh=False)[folder.id].name


def look(folders: Iterable[JobFolder], *, fresh: bool = True) -> dict[str, State]:
    """The states of these jobs of one store, by id: at most one squeue, and one sacct for what squeue does not hold."""
    folders = list(folders)
    found: dict[str, State] = {}
    asked: list[Asked] = []
    groups: dict[str, dict[str, Any]] = {}
    for folder in folders:
        if folder.done:
            found[folder.id] = State("done")
        elif name := (marker := submission(folder)).get("group"):
            asked.append(Asked(folder, marker, groups.setdefault(name, group(folder.store, name))))
        else:
            found[folder.id] = _here(folder)
    if asked:
        found |= _on_slurm(asked, fresh)
    return {folder.id: found[folder.id] for folder in folders}


class Asked(NamedTuple):
    """A job that sbatch was called for: its folder, submission.json and group.json."""

    folder: JobFolder
    marker: dict[str, Any]
    group: dict[str, Any]

    def id_and_row(self, rows: dict[str, Row], bases: dict[str, str]) -> tuple[str, Row | None]:
        """Its SLURM id ("" where sbatch has not said it and the queue does not have it) and its row of the queue.

        `bases`: what the queue has of groups without an id: their orchestrator died, or sbatch failed though its job was taken.
        """
        name = self.marker["group"]
        given = slurm_id(self.marker, {**self.group, "slurm_id": self.group.get("slurm_id") or bases.get(name)}) or ""
        row = find(rows, given)
        return given, row if row and group_of(row) == name else None


def base_ids(rows: dict[str, Row]) -> dict[str, str]:
    """SLURM's id of each group that the queue has."""
    return {group_of(row): key.partition("_")[0] for key, row in rows.items()}


def _on_slurm(asked: list[Asked], fresh: bool) -> dict[str, State]:
    no_answer, no_account, rows, past = "", "", dict[str, Row](), dict[str, Row]()
    try:
        rows = queue() if fresh else queue_lately()
        bases = base_ids(rows)
        if not fresh and not all(_waits_or_runs(one.id_and_row(rows, bases)[1]) for one in asked):
            rows = queue_lately(0)  # a no is never stale
    except SlurmUnavailable as error:
        no_answer = str(error)
    bases = base_ids(rows)
    known = {one.folder.id: one.id_and_row(rows, bases) for one in asked}
    gone = {
        given: one.marker["submitted"] for one in asked for given, row in [known[one.folder.id]] if given and not row
    }
    if gone and not no_answer:
        try:
            past = accounted(gone, gone)
        except SlurmUnavailable as error:
            no_account = str(error)
    found = {}
    for folder, marker, of in asked:
        given, row = known[folder.id]
        if not given and (not no_answer or of.get("refused")):
            found[folder.id] = _here(folder)
            continue
        silent = no_answer or (no_account if not row else "")
        found[folder.id] = judge(folder, given, row or past.get(given), silent, marker["submitted"])
    return found


def _waits_or_runs(row: Row | None) -> bool:
    return row is not None and not row.ended


def _here(folder: JobFolder) -> State:
    """Of a job that SLURM was never asked for (or refused)."""
    if running_now(folder):
        return State("running", _silence(folder.status))
    if folder.done:  # it ended while we asked
        return State("done")
    status = folder.status
    said, message = str(status.get("state", "new")), str(status.get("message") or "")
    if said == "running":
        return State("interrupted", "its process is gone: killed, or out of memory")
    return State("new" if said == "pending" else said, "" if said == "pending" else message)


def judge(folder: JobFolder, given: str, row: Row | None, no_answer: str = "", submitted: float = 0.0) -> State:
    """The table above, for a job that was submitted as `given`. `row`: squeue's, else sacct's, else None."""
    status = folder.status
    of_this = status.get("slurm_job_id") == given and status.get("state") != "pending"
    said, message = str(status.get("state", "")) if of_this else "", str(status.get("message") or "")
    began = of_this and said not in ("cancelled", "lost")  # the orchestrator's words, of jobs that may never have run
    if running_now(folder):
        return State("running", _silence(status), given, row)
    if no_answer:
        name = said if said in SETTLED else "requeued" if said == "interrupted" else "running" if began else "pending"
        note = message if said in SETTLED else "as far as is known"
    elif row and row.waits:
        name, note = (
            ("cancelled", UPSTREAM) if row.reason == NEVER else ("requeued" if began else "pending", row.reason)
        )
    elif row and not row.ended and not (said in SETTLED and row.state == "COMPLETING"):
        name, note = "running", _silence(status) if said == "running" else "starting"
    else:
        with contextlib.suppress(OSError):
            os.listdir(folder.path)  # a network file system shows what another node wrote to whoever lists the folder
        name, note = _over(folder, row, said, message)
        if name == "lost" and not said and time.time() - submitted < CLOCKS_APART:
            name, note = "pending", "SLURM does not list it yet"
    if folder.done:
        return State("done")
    return State(name, note, given, row, no_answer)


def _over(folder: JobFolder, row: Row | None, said: str, message: str) -> tuple[str, str]:
    """Of a job that neither waits nor runs and has no result."""
    if said in SETTLED:
        return said, message
    if row is None:
        return (
            ("interrupted", message)
            if said == "interrupted"
            else ("lost", "SLURM has no record of it, and it left no result")
        )
    if row.state == "CANCELLED":
        if row.reason == NEVER:
            return "cancelled", UPSTREAM
        return "cancelled", message if said == "interrupted" else "by scancel"
    if row.state == "COMPLETED":
        return "lost", "SLURM says COMPLETED, but it left no result"
    if said == "interrupted":
        return "interrupted", message
    return "failed", _cause(row, folder)


def _cause(row: Row, folder: JobFolder) -> str:
    """SLURM's end of a job that could not say itself what went wrong, in words."""
    if row.state == "FAILED" and any(MEMORY.search(path.read_text(errors="replace")) for path in batch_logs(folder)):
        row = dataclasses.replace(
            row, state="OUT_OF_MEMORY"
        )  # where SLURM kills without cgroups, its state does not tell
    where = f" on {row.nodes}" if row.nodes else ""
    if row.exit_code.endswith(":53"):  # what SLURM gives where it cannot open the job's log
        return f"SLURM could not open its log{where}: is the store writable from there?"
    if row.exit_code.startswith("74:"):  # the worker's word for it, see worker.STORE_FAILED
        return f"its store could not be written{where}: full, or read-only (exit code 74)"
    if row.state == "FAILED" and (error := _last_error(folder, row.id)):
        return f"{error} (SLURM: FAILED{where})"
    words = {
        "OUT_OF_MEMORY": "out of memory: raise mem_gb in the cluster file",
        "NODE_FAIL": "its node was lost, and SLURM did not start it again",
        "TIMEOUT": "ended by its time limit before it could save: raise minutes in the cluster file",
        "PREEMPTED": "preempted, and SLURM did not start it again",
        "BOOT_FAIL": "its node did not start",
        "DEADLINE": "its deadline passed",
    }
    code = f", exit code {row.exit_code}" if row.exit_code not in ("", "0:0") else ""
    return f"{words.get(row.state, 'it died without a word: killed by hand, or out of memory')} (SLURM: {row.state}{where}{code})"


def _last_error(folder: JobFolder, given: str) -> str:
    """What a rank said that could not write the status: the last line of a traceback in the other ranks' logs."""
    for path in sorted(folder.path.glob(f"logs/{given}_[1-9]*_log.out")):
        for text in reversed(path.read_text(errors="replace").splitlines()[-200:]):
            if re.match(r"[\w.]*(Error|Exception): ", text):
                return f"rank {path.name.removeprefix(f'{given}_').split('_')[0]}: {text[:300]}"
    return ""


def _silence(status: dict[str, Any]) -> str:
    quiet = time.time() - float(status.get("heartbeat", time.time()))
    return f"no sign of life for {round(quiet / 60)} min" if quiet > SILENT else ""


def write_down(folders: Iterable[JobFolder], states: dict[str, State]) -> None:
    """Into status.json how jobs ended that could not say it themselves, for MLflow, and for when SLURM has forgotten it."""
    for folder in folders:
        state, status = states[folder.id], folder.status
        ended = state.name in SETTLED or (state.name == "interrupted" and status.get("state") == "running")
        if (
            ended
            and status.get("state") != "done"
            and (status.get("state"), status.get("message")) != (state.name, state.note)
        ):
            kept: dict[str, Any] = {key: status.get(key) for key in ("heartbeat", "host", "pid")}
            given = state.slurm_id or status.get("slurm_job_id")
            folder.set_status(state.name, message=state.note, slurm_job_id=given, **kept)


def stale(stage: str, folder: JobFolder, digests: dict[str, str]) -> bool:
    """Whether a finished job was made by other code than the tree's."""
    return folder.done and folder.job.get("source_digest") not in (None, digests[stage])


HEADLINE = ("top1", "ap", "loss")


def progress(status: dict[str, Any]) -> str:
    """`epoch 3/30  loss 24.13  512 images/s  04:12 left`."""
    if not status.get("steps"):
        return str(status.get("message") or status.get("state", "new"))
    return (
        f"epoch {status['epoch']}/{status['epochs']}  loss {status['loss']:.3f}  "
        f"{status['images_per_second']:.0f} images/s  {clock(status['seconds_left'])} left"
    )
