"""`run.py --wait`: follow the jobs of a plan until none of them can continue."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from jigclu.job_folder import JobFolder
from orchestrate.cli.display import ORDER, line, summary
from orchestrate.console import print_line
from orchestrate.jobs.states import IN_HAND, State, look, write_down
from orchestrate.mirror.background import mirroring

POLL_SECONDS = 5.0


def follow(folders: list[JobFolder], store: Path) -> int:
    """Follow the plan's jobs until none can go on. 0: all done; 1: some are not. Ctrl-C leaves them to SLURM."""
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
                        print_line(f"{time.strftime('%H:%M:%S')} {line(folder, states[folder.id])}")
            if not any(state.name in IN_HAND for state in states.values()):
                print_line(f"jobs: {summary(states)}")
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
