"""The first import of every command: what goes wrong while the rest is imported is then one line, no traceback.

Imports only what Python itself has imported before, and is written for a Python that is too old for the suite.
"""

import os
import sys

OLDEST = (3, 11)
SUITE = ("jigclu", "jigclu_cli", "orchestrate", "reports", "detection", "benchmarks")


def guard_imports(prog: str) -> None:
    """Call before the other imports. Too old a Python, a missing package or a deleted folder ends with 2, Ctrl-C with 130."""
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:2]))
        _leave(f"{prog}: Python {found} is too old; use .venv/bin/python, or Python 3.11 to 3.13", 2)

    try:
        os.getcwd()
    except OSError:
        _leave(f"{prog}: the current folder no longer exists; cd to another one", 2)

    def report(kind: type, error: BaseException, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            _leave(f"{prog}: interrupted", 130)
        name = (getattr(error, "name", None) or "").split(".")[0]
        if isinstance(error, ModuleNotFoundError) and name and name not in SUITE:
            _leave(f"{prog}: the package {name} is missing: run `make demo` first, or use .venv/bin/python", 2)
        sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]

    sys.excepthook = report


def _leave(message: str, status: int) -> None:
    """End with this status: an exception hook that returns would end with 1, or by the signal."""
    try:
        sys.stdout.flush()
        sys.stderr.write(message + "\n")
        sys.stderr.flush()
    finally:
        os._exit(status)
