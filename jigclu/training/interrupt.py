"""Preemption and time limits: a signal sets a flag, the stage polls it at a step boundary. No torch."""

from __future__ import annotations

import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_received: list[int] = []


class Interrupted(Exception):
    """The job was asked to stop, has saved its state and goes on from there when it is started again."""


def install() -> None:
    """Let the stop signals set the flag instead of ending the process. Main thread only."""
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, lambda received, _frame: _received.append(received))


def request() -> None:
    """Ask for a stop from within the process."""
    _received.append(signal.SIGTERM)


def requested() -> bool:
    return bool(_received)


def clear() -> None:
    _received.clear()
