"""Output that never steers the work: a closed terminal, `| head` or a full disk ends what is shown, not what is done."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TextIO, cast

P = ParamSpec("P")


class SteadyStream:
    """A text stream that swallows the errors of writing: `error` is the first one. After it all output is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: OSError | None = None
        with contextlib.suppress(AttributeError, ValueError, io.UnsupportedOperation):
            cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")  # a locale without these letters

    def write(self, text: str) -> int:
        return self._attempt(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], int | None]) -> int | None:
        try:
            return action()
        except OSError as error:
            self.error = self.error or error
            with contextlib.suppress(OSError, ValueError):  # the stream still holds text, and child processes write too
                _to_nowhere(self._stream.fileno())
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady(main: Callable[P, int]) -> Callable[P, int]:
    """A command's main function whose work does not depend on its output.

    The exit code is the work's. If that is 0 but standard output could not be written (a full disk), it is 1, with one
    line on standard error; a reader that left (`| head`) is not an error. Files 0 to 2 are opened if they are closed.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **options: P.kwargs) -> int:
        given = inspect.signature(main).bind(*args, **options)
        given.apply_defaults()
        _open_closed_files()
        _let_libraries_warn()
        before = sys.stdout, sys.stderr
        streams = [SteadyStream(stream or open(os.devnull, "w")) for stream in before]  # noqa: SIM115  until the end
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
        try:
            status = main(*args, **options)
            for stream in streams:
                stream.flush()
            error = streams[0].error
            if error and error.errno != errno.EPIPE:
                prog = given.arguments.get("prog", "jigclu")
                print(f"{prog}: its output could not be written ({error.strerror}); the work is done", file=sys.stderr)
                return status or 1
            return status
        finally:
            for stream in streams:
                stream.flush()
            sys.stdout, sys.stderr = before

    return guarded


def _open_closed_files() -> None:
    """Otherwise the next file that is opened, a lock or a log, becomes the standard output of every child process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)


def _let_libraries_warn() -> None:
    """PYTHONWARNINGS=error would end a command, or its jobs, at a deprecation inside some library."""
    if "error" in os.environ.get("PYTHONWARNINGS", ""):
        del os.environ["PYTHONWARNINGS"]
        warnings.simplefilter("ignore")


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nowhere, number)
        os.close(nowhere)
