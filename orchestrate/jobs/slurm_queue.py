"""What SLURM says of this user's jobs: squeue for those it holds in memory, sacct for those it has let go."""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

PATIENCE = 30.0  # seconds for one command: a controller that is away is asked for about that long
CLOCKS_APART = 120.0  # seconds by which the submit host's clock and the controller's may differ
OFF = re.compile("storage is disabled|not running a supported|No such file")  # there is no accounting, or no sacct
AT_ONCE = 400  # ids in one sacct command
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
    """SLURM does not answer; one line."""


@dataclass(frozen=True)
class Row:
    """One job, or one task of an array. `state` is SLURM's own word, `script` "" where sacct says it."""

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


def ask(*words: str) -> str:
    """stdout of a SLURM command. Raises NoAnswer with its message."""
    try:
        # What a user's shell presets for these commands would hide jobs from us.
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))}
        env["SLURM_TIME_FORMAT"] = "standard"
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, env=env)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmUnavailable(" ".join(str(error).split())) from None
    if done.returncode:
        said = re.sub(r"(^|\n)(\w+: )?(error: )?", " ", done.stderr)  # its name is told by whoever tells the message
        raise SlurmUnavailable(" ".join(said.split()) or f"{words[0]} ended with {done.returncode}")
    return done.stdout


def queue() -> dict[str, Row]:
    """Every job of this user that SLURM still holds, those that ended lately too, array tasks one by one. Raises NoAnswer."""
    fields = ("JobArrayID", "State", "Reason", "TimeUsed", "TimeLeft", "NodeList", "exit_code", "Command")
    wanted = ",".join(f"{field}:|" for field in fields)  # `|`: what ends a field, which has no width then
    said = ask("squeue", "--noheader", "--me", "--all", "--array", "--states=all", f"--Format={wanted}")
    rows: dict[str, Row] = {}
    for line in said.splitlines():
        slurm_id, state, reason, used, left, nodes, ended, script = line.split("|", 7)
        code = int(ended) if ended.isdigit() else 0  # as wait() gives it
        row = Row(slurm_id, state, reason, used, left, nodes, script.rstrip("|"), f"{code >> 8}:{code & 127}")
        rows |= {one: replace(row, id=one) for one in tasks(slurm_id)}
    return rows


def accounted(ids: Iterable[str], since: dict[str, float]) -> dict[str, Row]:
    """What accounting has of these ids, the last run of each; {} where it is off. Raises NoAnswer where it is away.

    Ids are used again: only what was submitted after `since` (unix seconds, by id) counts.
    """
    rows: dict[str, Row] = {}
    wanted = sorted(set(ids))
    for start in range(0, len(wanted), AT_ONCE):
        part = wanted[start : start + AT_ONCE]
        try:
            said = ask(
                "sacct", "--allocations", "--duplicates", "--parsable2", "--noheader",
                "--format=JobID,State,Submit,ExitCode,Elapsed,NodeList", f"--jobs={','.join(part)}",
            )  # fmt: skip
        except SlurmUnavailable as error:
            if OFF.search(str(error)):
                return {}
            raise
        for line in said.splitlines():
            slurm_id, state, submit, exit_code, used, nodes = line.split("|")
            whole = [one for one in since if one.startswith(f"{slurm_id}_")]
            for one in whole or tasks(slurm_id):
                if one in since and _stamp(submit) >= since[one] - CLOCKS_APART:
                    by = state.removeprefix("CANCELLED").strip()  # `CANCELLED by 1000`
                    rows[one] = Row(one, state.split()[0], by, used, "", nodes, "", exit_code)
    return rows


def find(rows: dict[str, Row], slurm_id: str) -> Row | None:
    """The job's row, or that of its whole array: all that SLURM keeps of one that was cancelled before any task started."""
    return rows.get(slurm_id) or rows.get(slurm_id.partition("_")[0])


def tasks(slurm_id: str) -> list[str]:
    """`7_[0-2,5%2]`, what SLURM shows of tasks that never started, as 7_0, 7_1, 7_2, 7_5; any other id as it is."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", slurm_id)
    if not found:
        return [slurm_id]
    ranges = (part.partition("-") for part in found[2].split(","))
    return [f"{found[1]}_{index}" for first, _, last in ranges for index in range(int(first), int(last or first) + 1)]


def _stamp(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # Unknown, None
        return -math.inf


_last: tuple[float, dict[str, Row]] = (-math.inf, {})


def queue_lately(seconds: float = 2.0) -> dict[str, Row]:
    """queue(), or what it said at most so long ago. Raises NoAnswer."""
    global _last
    if time.monotonic() - _last[0] > seconds:
        _last = time.monotonic(), queue()
    return _last[1]


def group_of(row: Row) -> str:
    """The group that squeue's row was submitted in, by its script: ids and names are used again, a group's name never is."""
    return Path(row.script).parent.name


def seconds(text: str) -> float | None:
    """SLURM's `1-02:03:04`, `02:03` as seconds; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, rest = (int(word or 0) for word in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + rest
