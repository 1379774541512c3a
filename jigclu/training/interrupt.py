"""Preemption and time limits: a signal sets a flag, which the stage polls at step boundaries. No torch."""

from __future__ import annotations

import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
_received: list[int] = []


class Interrupted(Exception):
    """The job stopped on request with its state saved; when it is started again it resumes from there."""


def install() -> None:
    """Make the stop signals set the flag instead of ending the process. Main thread only.

    SIGHUP (a closed terminal) stays ignored if it is, which is what `nohup` asks for.
    """
    _received.clear()
    for number in SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        signal.signal(number, lambda received, _frame: _received.append(received))


def request() -> None:
    """Request a stop from within the process."""
    _received.append(signal.SIGTERM)


def requested() -> bool:
    return bool(_received)


def clear() -> None:
    _received.clear()
