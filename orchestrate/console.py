"""Output to the terminal."""

from __future__ import annotations

import contextlib
import shutil
import sys
import termios
import textwrap
from collections.abc import Iterator

COLUMNS = 80  # of lines of text, also where the output is no terminal


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def width() -> int:
    """Columns of the terminal; 80 without one."""
    return shutil.get_terminal_size((80, 24)).columns


_CLEAR = "\r\x1b[K"
_live = [False]  # whether the cursor stands in a line that is redrawn


def print_line(text: str) -> None:
    """One line; on a terminal one that is too long continues on the next, broken between words."""
    if is_terminal():
        text = _CLEAR * _live[0] + wrapped(text, width())
        _live[0] = False
    print(text, flush=True, file=sys.stdout)


def redraw(text: str) -> None:
    """Draw the line that shows progress on a terminal, over the one before; what does not fit is left out at its end."""
    _live[0] = True
    print(f"\r{fitting(text, width() - 1)}\x1b[K", end="", flush=True, file=sys.stdout)


def wrapped(text: str, columns: int, indent: str = "  ") -> str:
    """The text in lines of at most so many columns, broken between words; a longer word stays whole."""
    lines = textwrap.wrap(
        text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, tabsize=4
    )
    return "\n".join(lines) or text


def fitting(text: str, columns: int) -> str:
    """The text, or as many of its first words as fit, then `...`."""
    if len(text) <= columns:
        return text
    head = text[: max(0, columns - 3)]
    words = head.rpartition(" ")[0] if " " in head and not text[len(head)].isspace() else head
    return f"{words.rstrip(' |')}..."


@contextlib.contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Without the `^C` that a terminal would print into the line where the cursor stands."""
    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (AttributeError, OSError, ValueError, termios.error):  # no terminal, or none open
        yield
        return
    quiet = [*before]
    quiet[3] &= ~termios.ECHOCTL
    try:
        termios.tcsetattr(terminal, termios.TCSANOW, quiet)
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSANOW, before)
