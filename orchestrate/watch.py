"""What people see of jobs: one line a job, a table that follows them, and MLflow kept up to date meanwhile."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jigclu.training.folder import JobFolder, clock
from orchestrate import mirror
from orchestrate.plan import Plan
from orchestrate.rates import RATES, Measured
from orchestrate.record import current_id, say
from orchestrate.squeue import seconds
from orchestrate.states import IN_HAND, State, look, write_down

MIRROR_SECONDS, POLL_SECONDS = 10.0, 5.0
ORDER = ("running", "requeued", "pending", "failed", "lost", "cancelled", "interrupted", "new", "stale", "done")
HEADLINE = ("top1", "ap", "loss")


def progress(status: dict[str, Any]) -> str:
    """`epoch 3/30  loss 24.13  512 images/s  04:12 left`."""
    if not status.get("steps"):
        return str(status.get("message") or status.get("state", "new"))
    return (
        f"epoch {status['epoch']}/{status['epochs']}  loss {status['loss']:.3f}  "
        f"{status['images_per_second']:.0f} images/s  {clock(status['seconds_left'])} left"
    )


def more(folder: JobFolder, state: State) -> str:
    """What there is to say of a job in its state: progress, place, reason."""
    status = folder.status
    match state.name:
        case "running":
            parts = [progress(status) if status.get("state") == "running" else "", state.note]
            if state.row and (left := seconds(state.row.left)) is not None:
                parts.append(f"limit in {clock(left)}")
            parts.append(f"on {state.row.nodes}" if state.row and state.row.nodes else "")
        case "requeued":
            parts = [f"at step {status.get('step', 0)}, attempt {len(status.get('attempts', [1]))} is over", state.note]
        case "done" | "stale":
            result = folder.result
            told = [f"{name} {value:.2f}" for name, value in result.get("metrics", {}).items() if name in HEADLINE]
            parts = [*told, f"in {clock(result.get('seconds', 0))}", state.note, graded(folder)]
        case _:
            parts = [state.note]
    return "  ".join(part for part in parts if part and part != "None")


def graded(folder: JobFolder) -> str:
    """`1.12 times the estimate`; "" where there was none."""
    path = folder.store / RATES
    ratio = _measured(folder.store, path.stat().st_mtime_ns).grade(folder.id) if path.exists() else None
    return f"{ratio:.2f} times the estimate" if ratio else ""


@lru_cache(maxsize=1)
def _measured(store: Path, _stamp: int) -> Measured:
    return Measured(store)


def line(folder: JobFolder, state: State, name: str = "") -> str:
    told, given = name or folder.job.get("name", ""), state.slurm_id or current_id(folder) or "-"
    return f"{state.name:11s} {folder.id}  {given:>10s}  {told}  {more(folder, state)}".rstrip()


def count_of(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def summary(states: dict[str, State]) -> str:
    count = Counter(state.name for state in states.values())
    return ", ".join(f"{count[name]} {name}" for name in ORDER if count[name])


def follow(plan: Plan, store: Path) -> int:
    """Follow the plan's jobs until none can go on. 0: all done; 1: some are not. Ctrl-C leaves them to SLURM."""
    folders = [job.folder(store) for job in plan.jobs.values()]
    told: dict[str, str] = {}
    height = 0
    with mirroring(store):
        while True:
            states = look(folders)
            write_down(folders, states)
            if sys.stdout.isatty():
                height = _redraw(folders, states, height)
            else:
                for folder in folders:
                    if told.get(folder.id) != states[folder.id].name:
                        told[folder.id] = states[folder.id].name
                        say(f"{time.strftime('%H:%M:%S')} {line(folder, states[folder.id])}")
            if not any(state.name in IN_HAND for state in states.values()):
                say(f"jobs: {summary(states)}")
                return 0 if all(state.name == "done" for state in states.values()) else 1
            time.sleep(POLL_SECONDS)


def _redraw(folders: list[JobFolder], states: dict[str, State], height: int) -> int:
    """Draw the table over the last one of that height: what is not done, as far as the terminal goes; returns its height."""
    size = shutil.get_terminal_size()
    open_ones = sorted(
        (folder for folder in folders if states[folder.id].name != "done"),
        key=lambda one: ORDER.index(states[one.id].name),
    )
    lines = [line(folder, states[folder.id]) for folder in open_ones[: max(1, size.lines - 3)]]
    lines.append(f"{time.strftime('%H:%M:%S')}  {summary(states)}")
    up = f"\x1b[{height}A" if height else ""
    print(up + "".join(f"\r\x1b[K{one[: size.columns - 1]}\n" for one in lines) + "\x1b[J", end="", flush=True)
    return len(lines)


@contextlib.contextmanager
def mirroring(store: Path) -> Iterator[None]:
    """Keep MLflow up to date from a side thread while jobs run; its troubles are told once and end nothing."""
    stop, told = threading.Event(), list[str]()

    def once(final: bool = False) -> None:
        try:
            mirror.sync(store, wait_for_lock=final)
        except mirror.MirrorError as error:
            if not told:
                say(f"{time.strftime('%H:%M:%S')} warning: {error}")
            told.append(str(error))

    def loop() -> None:
        while not stop.wait(MIRROR_SECONDS):
            once()

    thread = threading.Thread(target=loop, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        once(final=True)
