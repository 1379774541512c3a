"""`run.py --wait`: follow the jobs of a plan until none of them is active."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from jigclu.job_folder import JobFolder
from orchestrate.cli.display import ORDER, describe, summary, time_left
from orchestrate.console import fitting, print_line, quiet_interrupt
from orchestrate.jobs.states import ACTIVE, State, look, record_ends
from orchestrate.mirror.background import mirroring

POLL_SECONDS, PLAIN_SECONDS = (
    5.0,
    300.0,
)  # PLAIN_SECONDS: between lines about the time left, if the output is no terminal


def follow(folders: list[JobFolder], store: Path) -> int:
    """Show the jobs until none is active. 0: all are done; 1: some are not. Ctrl-C ends only the display."""
    printed: dict[str, str] = {}  # job id -> the state that was printed last
    height, said = 0, time.monotonic()
    with mirroring(store), quiet_interrupt():
        while True:
            states = look(folders)
            record_ends(folders, states)
            if sys.stdout.isatty():
                height = _redraw(folders, states, height)
            else:
                for folder in folders:
                    if printed.get(folder.id) != states[folder.id].name:
                        printed[folder.id] = states[folder.id].name
                        print_line(f"{time.strftime('%H:%M:%S')} {describe(folder, states[folder.id])}")
                if time.monotonic() - said >= PLAIN_SECONDS and (left := time_left(folders, states)):
                    said = time.monotonic()
                    print_line(f"{time.strftime('%H:%M:%S')} {left}")
            if not any(state.name in ACTIVE for state in states.values()):
                print_line(f"jobs: {summary(states)}")
                return 0 if all(state.name == "done" for state in states.values()) else 1
            time.sleep(POLL_SECONDS)


def _redraw(folders: list[JobFolder], states: dict[str, State], height: int) -> int:
    """Draw the jobs that are not done over the previous table, which had `height` lines; returns the new height."""
    size = shutil.get_terminal_size()
    unfinished = sorted(
        (folder for folder in folders if states[folder.id].name != "done"),
        key=lambda folder: ORDER.index(states[folder.id].name),
    )
    lines = [describe(folder, states[folder.id]) for folder in unfinished[: max(1, size.lines - 3)]]
    lines.append("  |  ".join(filter(None, (time.strftime("%H:%M:%S"), time_left(folders, states), summary(states)))))
    up = f"\x1b[{height}A" if height else ""
    print(up + "".join(f"\r\x1b[K{fitting(text, size.columns - 1)}\n" for text in lines) + "\x1b[J", end="", flush=True)
    return len(lines)
