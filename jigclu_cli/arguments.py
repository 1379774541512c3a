"""The argument parser of every command line: errors in one line with the nearest valid name. Standard library only."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn

SUITE = ("jigclu", "jigclu_cli", "orchestrate", "reports", "detection")


class Parser(argparse.ArgumentParser):
    """Help texts keep their line breaks, options cannot be abbreviated, and a mistake is one line and exit code 2."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def add_version(self) -> None:
        self.add_argument("--version", action="version", version=version(), help="print the version and exit")

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {self._explain(message)}", file=sys.stderr)
        raise SystemExit(2)

    def _explain(self, message: str) -> str:
        if found := re.match(r"unrecognized arguments: (.*)", message):
            word = found[1].split()[0]
            kind, valid = ("option", [*self._options()]) if word.startswith("-") else ("argument", [])
            return f"unknown {kind} {word}{did_you_mean(word.split('=')[0], valid)} (see --help)"
        if found := re.search(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            valid = re.findall(r"[\w-]+", found[3])
            return f"unknown {found[1]} {found[2]}{did_you_mean(found[2], valid)}; valid: {', '.join(valid)}"
        return f"{message} (see --help)"

    def _options(self) -> Iterator[str]:
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._option_string_actions


def version() -> str:
    """`jigclu-suite 0.1.0`. Imported by name, so that this package depends on no other."""
    return f"jigclu-suite {importlib.import_module('jigclu').__version__}"


def did_you_mean(word: str, valid: list[str]) -> str:
    """`; did you mean X?`, or nothing if no valid name is close to the word."""
    near = difflib.get_close_matches(word, valid, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def guard_imports(prog: str) -> None:
    """Call before the suite's imports: a missing package (exit code 2) or Ctrl-C (130) is then one line, no traceback."""

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            _leave(f"{prog}: interrupted", 130)
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] not in SUITE:
            _leave(f"{prog}: the package {error.name} is missing: run `make demo` first, or use .venv/bin/python", 2)
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = report


def announce(text: str) -> None:
    """A line at once, before imports and checks that take seconds on a busy machine; only on a terminal, on stderr."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _leave(message: str, status: int) -> NoReturn:
    """End with this status: an exception hook that returns would end with 1, or by the signal."""
    print(message, file=sys.stderr, flush=True)
    os._exit(status)
