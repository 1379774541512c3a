"""The argument parser of every command line: errors in one line with the nearest valid name. Standard library only."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

MESSAGES = (  # argparse's own words -> what a colleague would say
    (r"argument (\S+): (must be .*)", r"\1 \2"),
    (r"argument (\S+): expected one argument", r"\1 needs a value"),
    (r"argument (\S+): expected at least one argument", r"\1 needs at least one value"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\2 and \1 exclude each other: choose one"),
    (r"argument (\S+): ignored explicit argument (.*)", r"\1 takes no value (got \2)"),
    (r"the following arguments are required: (.*)", r"\1 is missing"),
    (r"argument (\S+): (.*)", r"\1: \2"),
)


class Parser(argparse.ArgumentParser):
    """Help texts keep their line breaks, options cannot be abbreviated, and a mistake is one line and exit code 2."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def add_version(self) -> None:
        self.add_argument("--version", action="version", version=version(), help="print the version and exit")

    def error(self, message: str) -> NoReturn:
        raise SystemExit(mistake(self.prog.removeprefix("python -m "), self._explain(message)))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A verb's own parser refuses what it does not know: argparse leaves that to the parser above, whose options and
        name are others."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _explain(self, message: str) -> str:
        message = " ".join(message.split())
        if found := re.match(r"unrecognized arguments: (.*)", message):
            word = found[1].split()[0]
            if word.startswith("-"):
                return f"unknown option {word}{did_you_mean(word.split('=')[0], [*self._options()])} (see --help)"
            lists = [
                str(action.metavar) for action in self._actions if not action.option_strings and action.nargs == "*"
            ]
            return f"unknown argument {word}; " + (
                f"write each {lists[0]} before the options" if lists else "see --help"
            )
        if found := re.search(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            valid = re.findall(r"[\w-]+", found[3])
            return f"unknown {found[1].lower()} {found[2]}{did_you_mean(found[2], valid)}; valid: {', '.join(valid)}"
        for pattern, plain in MESSAGES:
            if re.fullmatch(pattern, message):
                return f"{re.sub(pattern, plain, message)} (see --help)"
        return f"{message} (see --help)"

    def _options(self) -> Iterator[str]:
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._option_string_actions


def whole(low: int, high: int) -> Callable[[str], int]:
    """The `type` of an option that takes a whole number from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch("[+-]?[0-9]{1,30}", text):
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return _within(int(text), low, high)

    return read


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """The `type` of an option that takes a number from `low` to `high`; infinity only if `high` is."""

    def read(text: str) -> float:
        try:
            value = float(text) if re.fullmatch(r"[+-]?(inf|[0-9.]+([eE][+-]?[0-9]+)?)", text) else math.nan
        except ValueError:
            value = math.nan
        if math.isnan(value):
            limit = "" if math.isinf(high) else f" to {high:g}"
            raise argparse.ArgumentTypeError(f"must be a number from {low:g}{limit}, not {text!r}")
        return _within(value, low, high)

    return read


def _within(value: Any, low: float, high: float) -> Any:
    if value < low:
        raise argparse.ArgumentTypeError(f"must be at least {low}, not {value}")
    if value > high:
        raise argparse.ArgumentTypeError(f"must be at most {high}, not {value}")
    return value


def mistake(prog: str, message: object) -> int:
    """Print a user's mistake as one line on standard error; returns the exit code 2.

    A character that would break the line or steer the terminal is written as its escape.
    """
    text = f"{prog}: {message}"
    shown = (letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    print("".join(shown), file=sys.stderr)
    return 2


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)  # raised by write(), without a file's name


def file_problem(error: OSError) -> str:
    """A file that cannot be read or written, with the reason. Raises other errors of the system again."""
    if error.filename is None and error.errno not in DISK:
        raise error
    if isinstance(error, FileExistsError) and not os.path.isdir(error.filename):
        return f"{error.filename} is a file, not a folder: move it away"
    return ": ".join(filter(None, (error.filename and str(error.filename), error.strerror)))


def store_from_environment() -> Path:
    """The folder that JIGCLU_STORE names; runs/ if it is not set or blank."""
    return Path(os.environ.get("JIGCLU_STORE", "").strip() or "runs")


def version() -> str:
    """`jigclu-suite 0.1.0`. Imported by name, so that this package depends on no other."""
    return f"jigclu-suite {importlib.import_module('jigclu').__version__}"


def did_you_mean(word: str, valid: list[str]) -> str:
    """`; did you mean X?`, or nothing if no valid name is close to the word."""
    lower = {name.lower(): name for name in valid}
    near = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return f"; did you mean {lower[near[0]]}?" if near else ""


def announce(text: str) -> None:
    """A line at once, before imports and checks that take seconds on a busy machine; only on a terminal, on stderr."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
