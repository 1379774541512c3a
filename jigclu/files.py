"""Atomic writes and file locks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class UnreadableFile(ValueError):
    """A file of the store that exists but has no valid content. The message is one line that names the file."""


def fsync_dir(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all: temp file beside it, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_json(path: Path, values: Any) -> None:
    write_atomic(path, (json.dumps(values, indent=1, sort_keys=True, allow_nan=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file; {} if there is no file. Raises UnreadableFile for anything else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except IsADirectoryError:
        raise UnreadableFile(f"{path} is a folder, not a file") from None
    if not data.strip(b"\0 \r\n\t"):  # after a power cut a file may have its length but only zero bytes
        raise UnreadableFile(f"{path} is empty")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise UnreadableFile(f"{path} is torn or is no JSON") from None
    if not isinstance(values, dict):
        raise UnreadableFile(f"{path} holds no JSON object")
    return values


def read_cache(path: Path) -> dict[str, Any]:
    """read_json for a file that can be written again from other files: {} also if it is unreadable."""
    try:
        return read_json(path)
    except UnreadableFile:
        return {}


@contextlib.contextmanager
def locked(path: Path, wait: bool = True, patience: float = 0.0, inherited: bool = False) -> Iterator[bool]:
    """Hold an exclusive lock on `path`, which is created if absent; yields whether the lock was acquired.

    With `wait` off, yields False if another process still holds it after `patience` seconds. `inherited`: programs
    started while it is held (with close_fds off) hold it too, so it is released only when they have ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + patience
    with open(path, "a") as file:
        os.set_inheritable(file.fileno(), inherited)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.05)
        yield True
