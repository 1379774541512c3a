"""This user's jobs as SLURM lists them: squeue for those in its memory, sacct for those that have left it."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

# Seconds for one command: a client retries a controller that does not answer for about that long.
COMMAND_TIMEOUT = 30.0
CLOCK_SKEW = 120.0  # seconds by which the submit host's clock and the controller's may differ
# There is no accounting, or no sacct.
ACCOUNTING_OFF = re.compile("storage is disabled|not running a supported|No such file")
NO_SUCH_JOB = re.compile("Invalid job id", re.IGNORECASE)
IDS_PER_COMMAND = 400  # in one sacct command
LAST_LOOKS = 20  # submissions that scontrol is asked about, one command each
ROW_ID = re.compile(r"[0-9]+(?:[_+].*)?")
MOST_TASKS = 4_000_001  # SLURM's largest MaxArraySize
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
ENDED = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
    "REVOKED",
)


class SlurmUnavailable(OSError):
    """A SLURM command failed or did not answer; the message is one line."""


@dataclass(frozen=True)
class Row:
    """One job, or one task of an array. `state`: SLURM's own word; `script`: "" in a row that sacct gave."""

    id: str
    state: str
    reason: str = ""
    used: str = ""
    left: str = ""
    nodes: str = ""
    script: str = ""
    exit_code: str = ""

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def slurm_command(*words: str) -> str:
    """stdout of a SLURM command. Raises SlurmUnavailable with its error message."""
    try:
        # A user's presets for these commands could hide jobs from us.
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))}
        env["SLURM_TIME_FORMAT"] = "standard"
        process = subprocess.run(
            words, capture_output=True, text=True, errors="surrogateescape", timeout=COMMAND_TIMEOUT, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmUnavailable(" ".join(str(error).split())) from None
    if process.returncode:
        # Without the leading `squeue: error: `: the caller's message names the command.
        message = re.sub(r"(^|\n)(\w+: )?(error: )?", " ", process.stderr.encode(errors="replace").decode())
        raise SlurmUnavailable(" ".join(message.split()) or f"{words[0]} ended with {process.returncode}")
    return process.stdout


def queue() -> dict[str, Row]:
    """Every job of this user that SLURM still holds, recently ended ones included, array tasks one by one.

    Raises SlurmUnavailable.
    """
    fields = ("JobArrayID", "State", "Reason", "TimeUsed", "TimeLeft", "NodeList", "exit_code", "Command")
    wanted = ",".join(f"{field}:|" for field in fields)  # `|` ends a field, which then has no fixed width
    output = slurm_command("squeue", "--noheader", "--me", "--all", "--array", "--states=all", f"--Format={wanted}")
    rows: dict[str, Row] = {}
    for slurm_id, state, reason, used, left, nodes, wait_status, script in _table(output, len(fields)):
        code = int(wait_status) if re.fullmatch("[0-9]{1,9}", wait_status) else 0  # encoded as wait() does
        row = Row(slurm_id, state, reason, used, left, nodes, script.rstrip("|"), f"{code >> 8}:{code & 127}")
        rows |= {task_id: replace(row, id=task_id) for task_id in array_task_ids(slurm_id)}
    return rows


def accounting_rows(ids: Iterable[str], since: dict[str, float]) -> dict[str, Row]:
    """sacct's rows of these ids, the last run of each; {} if accounting is off. Raises SlurmUnavailable.

    SLURM reuses ids: only what was submitted after `since` (unix seconds, by id) counts.
    """
    rows: dict[str, Row] = {}
    wanted = sorted(set(ids))
    for start in range(0, len(wanted), IDS_PER_COMMAND):
        part = wanted[start : start + IDS_PER_COMMAND]
        try:
            output = slurm_command(
                "sacct", "--allocations", "--duplicates", "--parsable2", "--noheader",
                "--format=JobID,State,Submit,ExitCode,Elapsed,NodeList", f"--jobs={','.join(part)}",
            )  # fmt: skip
        except SlurmUnavailable as error:
            if ACCOUNTING_OFF.search(str(error)):
                return {}
            raise
        for slurm_id, state, submit, exit_code, used, nodes in _table(output, 6):
            whole_array = [task_id for task_id in since if task_id.startswith(f"{slurm_id}_")]
            for task_id in whole_array or array_task_ids(slurm_id):
                if task_id in since and _unix_seconds(submit) >= since[task_id] - CLOCK_SKEW:
                    by = state.removeprefix("CANCELLED").strip()  # `CANCELLED by 1000`
                    rows[task_id] = Row(task_id, state.split()[0], by, used, "", nodes, "", exit_code)
    return rows


def _table(output: str, columns: int) -> Iterator[list[str]]:
    """The rows of a command's output. Other lines, such as a warning that a site's wrapper prints, are skipped."""
    for line in output.splitlines():
        row = line.split("|", columns - 1)
        if len(row) == columns and ROW_ID.fullmatch(row[0]) and row[1].strip():
            yield row


def shown_rows(ids: Iterable[str]) -> dict[str, Row]:
    """What scontrol shows of these jobs that have not ended: the last question before a job counts as lost.

    squeue can answer with an empty list (a restarted controller, a wrapper) while the jobs are still there. Only the
    first LAST_LOOKS submissions are looked up. {} if there is no scontrol. Raises SlurmUnavailable.
    """
    rows: dict[str, Row] = {}
    for base in sorted({slurm_id.partition("_")[0] for slurm_id in ids})[:LAST_LOOKS]:
        try:
            output = slurm_command("scontrol", "--oneliner", "show", "job", base)
        except SlurmUnavailable as error:
            if NO_SUCH_JOB.search(str(error)) or not shutil.which("scontrol"):
                continue
            raise
        for line in output.splitlines():
            values = dict(re.findall(r"(\w+)=(\S+)", line))
            if "JobId" not in values or values.get("JobState") in (None, *ENDED):
                continue
            task = values.get("ArrayTaskId")
            slurm_id = f"{base}_{task if task.isdigit() else f'[{task}]'}" if task else values["JobId"]
            script = re.search(r"\bCommand=(.*?)(?: \w+=|$)", line)
            row = Row(slurm_id, values["JobState"], values.get("Reason", ""), script=script[1] if script else "")
            rows |= {task_id: replace(row, id=task_id) for task_id in array_task_ids(slurm_id)}
    return rows


def find_row(rows: dict[str, Row], slurm_id: str) -> Row | None:
    """The job's row, or its array's: SLURM keeps only that one if the array was cancelled before any task started."""
    return rows.get(slurm_id) or rows.get(slurm_id.partition("_")[0])


def array_task_ids(slurm_id: str) -> list[str]:
    """`7_[0-2,5%2]`, SLURM's form for tasks that never started, as 7_0, 7_1, 7_2, 7_5; any other id unchanged."""
    one = "[0-9]{1,7}(?:-[0-9]{1,7})?"
    found = re.fullmatch(rf"([0-9]+)_\[({one}(?:,{one})*)(?:%[0-9]+)?\]", slurm_id)
    if not found:
        return [slurm_id]
    ends = [part.partition("-") for part in found[2].split(",")]
    ranges = [range(int(first), int(last or first) + 1) for first, _, last in ends]
    if sum(map(len, ranges)) > MOST_TASKS:
        return [slurm_id]
    return [f"{found[1]}_{index}" for part in ranges for index in part]


def _unix_seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # Unknown, None
        return -math.inf


_last: tuple[float, dict[str, Row]] = (-math.inf, {})


def recent_queue(max_age: float = 2.0) -> dict[str, Row]:
    """queue(), or its last answer if that is at most `max_age` seconds old. Raises SlurmUnavailable."""
    global _last
    if time.monotonic() - _last[0] > max_age:
        _last = time.monotonic(), queue()
    return _last[1]


def group_of(row: Row) -> str:
    """The group of a row of squeue, by its script: ids and job names are reused, a group's name never is."""
    return Path(row.script).parent.name


def parse_duration(text: str) -> float | None:
    """SLURM's `1-02:03:04`, `02:03` as seconds; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(word or 0) for word in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds
