"""What a person sees at a terminal of 80 columns: something at once, the time left uncut, no `^C` in the line."""

from __future__ import annotations

import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment, prepared_store, table8

from orchestrate import console
from orchestrate.cost.remaining import Pace, of_running, seconds_left


class Terminal:
    """run.py at a pseudo-terminal; `text` is everything that it showed until now."""

    def __init__(self, store: Path, words: list[str], columns: int = 80):
        self.ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.began, self.first, self.text = time.monotonic(), 0.0, ""
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "orchestrate" / "run.py"), *words],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=store.parent, env=environment(store, TERM="xterm"),
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(theirs)

    def until(self, pattern: str) -> None:
        while not re.search(pattern, self.text):
            assert self.read(), self.text

    def read(self) -> bool:
        try:
            found = os.read(self.ours, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            return False
        self.first = self.first or time.monotonic() - self.began
        self.text += found
        return bool(found)


def _own_terminal() -> None:
    os.setsid()
    ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_run_at_a_terminal_answers_at_once_fits_its_width_and_stops_cleanly(tmp_path: Path, template: Path) -> None:
    store = prepared_store(tmp_path / "runs", template)
    terminal = Terminal(store, [*table8(pretrain__epochs=400), "--cells", "m=2", "random"])
    terminal.until("planning ...")
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert terminal.first < 1 or busy, f"{terminal.first:.1f} s until the first line"
    terminal.until(r"m=2: epoch \d+/400")
    os.write(terminal.ours, b"\x03")  # Ctrl-C, as a terminal sends it
    terminal.until("the same command resumes")
    while terminal.read():
        pass
    assert terminal.process.wait() == 130
    live = [part for part in re.split(r"[\r\n]+", terminal.text) if " jobs done" in part]
    assert live and all(re.match(r"about .* left  \|  0 of 3 jobs done", part) for part in live), live
    shown = [part.replace("\x1b[K", "") for part in re.split(r"[\r\n]+", terminal.text)]
    assert max(map(len, shown)) <= 80, [part for part in shown if len(part) > 80]
    assert "^C" not in terminal.text and "stopping: 1 running job saves at the next step" in " ".join(shown)


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("about 5 s left", 80, "about 5 s left"),
        ("about 5 s left  |  pretrain m=2: epoch 3/5", 28, "about 5 s left..."),
        ("about 5 s left  |  pretrain m=2: epoch 3/5", 32, "about 5 s left  |  pretrain..."),
        ("averyverylongword", 10, "averyve..."),
    ],
)
def test_a_line_that_does_not_fit_ends_between_words(text: str, columns: int, shown: str) -> None:
    assert console.fitting(text, columns) == shown and len(shown) <= columns


def test_a_long_line_continues_on_the_next_between_words() -> None:
    lines = console.wrapped("12:00:00 failed   abc  name: " + "word " * 30 + "/a/path/that/is/long", 40).splitlines()
    assert max(map(len, lines)) <= 40 and all(line.startswith("  ") for line in lines[1:])
    assert console.wrapped("  deeper  two  spaces", 80) == "  deeper  two  spaces"


def test_the_time_left_counts_running_and_waiting_jobs_at_the_pace_of_those_that_ended() -> None:
    now = time.time()
    status = {"state": "running", "seconds_left": 100, "heartbeat": now - 10, "attempts": [{"began": now - 50}]}
    assert of_running(status, 1000.0) == pytest.approx(90, abs=1)
    del status["seconds_left"]
    assert of_running(status, 1000.0) == pytest.approx(950, abs=1)
    status["seconds_left"] = 100
    jobs = {"a": (1.0, ()), "b": (1.0, ("a",)), "c": (1.0, ())}
    assert seconds_left(jobs, {"a": status}, 1) == pytest.approx(90 + 7200, abs=2)
    assert seconds_left(jobs, {"a": status}, 2) == pytest.approx(90 + 3600, abs=2)
    pace = Pace()
    assert pace.of("pretrain") == 1.0
    for seconds in (10.0, 30.0, 100.0):
        pace.add("pretrain", seconds, 10.0)
    assert pace.of("pretrain") == 3.0 == pace.of("linear")
