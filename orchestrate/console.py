"""Output to the terminal."""

from __future__ import annotations

import sys


def print_line(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
