"""Atomic writes, file locks, and locks by which one user's runs share a machine's cores and GPUs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    fsync_dir(path.parent)


def write_json(path: Path, values: Any) -> None:
    write_atomic(path, (json.dumps(values, indent=1, sort_keys=True, allow_nan=True) + "\n").encode())


class Shape:
    """What a field of a JSON file holds: `words` for messages, and a test of its value."""

    def __init__(self, words: str, fits: Callable[[Any], bool]):
        self.words, self.fits = words, fits


def is_finite(value: Any) -> bool:
    """Whether it is a number, and neither NaN nor infinite; true and false are no numbers."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


TEXT = Shape("a text", lambda value: isinstance(value, str))
TEXT_OR_NULL = Shape("a text", lambda value: value is None or isinstance(value, str))
FINITE = Shape("a finite number", is_finite)
NUMBER = Shape("a number", lambda value: isinstance(value, int | float))  # NaN is one: a diverging loss
POSITIVE = Shape("a positive number", lambda value: is_finite(value) and value > 0)
COUNT = Shape("a whole number from 0", lambda value: is_finite(value) and isinstance(value, int) and value >= 0)
PID = Shape("the number of a process", lambda value: COUNT.fits(value) and 0 < value < 1 << 31)
PID_OR_NULL = Shape(PID.words, lambda value: value is None or PID.fits(value))
OBJECT = Shape("an object", lambda value: isinstance(value, dict))
SEED = Shape("a whole number from 0 to 2^64 - 1", lambda value: COUNT.fits(value) and value < 1 << 64)
TEXTS = Shape("a list of texts", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value))


def _is_plain(name: str) -> bool:
    return bool(name) and Path(name).name == name and name != ".." and "\0" not in name and len(os.fsencode(name)) < 256


NAME = Shape("a name without slashes", lambda value: isinstance(value, str) and _is_plain(value))
IDS = Shape("a list of job ids", lambda value: TEXTS.fits(value) and all(map(_is_plain, value)))
STAMP = Shape("a time in seconds since 1970", lambda value: is_finite(value) and 0 <= value < 1e11)
STAMP_OR_NULL = Shape(STAMP.words, lambda value: value is None or STAMP.fits(value))


def objects(required: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """A list of objects with the required fields; optional ones, if they are there, fit too."""
    shapes = {**required, **(optional or {})}

    def fits(item: Any) -> bool:
        return (
            isinstance(item, dict)
            and item.keys() >= required.keys()
            and all(shape.fits(item[key]) for key, shape in shapes.items() if key in item)
        )

    return Shape(
        f"a list of objects with {', '.join(required)}",
        lambda value: isinstance(value, list) and all(map(fits, value)),
    )


def read_fields(path: Path, shapes: Mapping[str, Shape], required: Iterable[str] = ()) -> dict[str, Any]:
    """read_json, with UnreadableFile also for a field that holds something else, or for a required one that is absent."""
    values = read_json(path)
    if values and (absent := [key for key in required if key not in values]):
        raise UnreadableFile(f"{path} has no {absent[0]}")
    for key, shape in shapes.items():
        if key in values and not shape.fits(values[key]):
            given = json.dumps(values[key])
            shown = given if len(given) <= 60 else f"{given[:57]}..."
            raise UnreadableFile(f"{path}: {key} is {shown}, and must be {shape.words}")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file; {} if there is no file. Raises UnreadableFile for anything else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except IsADirectoryError:
        raise UnreadableFile(f"{path} is a folder, not a file") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UnreadableFile(f"{path} is a link to itself") from None
    if not data.strip(b"\0 \r\n\t"):  # after a power cut a file may have its length but only zero bytes
        raise UnreadableFile(f"{path} is empty")
    try:
        values = json.loads(data, object_pairs_hook=_once)
    except _Twice as error:
        raise UnreadableFile(f"{path} has the key {error.args[0]!r} twice") from None
    except (ValueError, RecursionError):
        raise UnreadableFile(f"{path} is torn or is no JSON") from None
    if not isinstance(values, dict):
        raise UnreadableFile(f"{path} holds no JSON object")
    return values


class _Twice(Exception):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Twice(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return values


def read_cache(path: Path) -> dict[str, Any]:
    """read_json for a file that can be written again from other files: {} also if it is unreadable."""
    return read_cached_fields(path, {})


def read_cached_fields(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """read_fields for such a file."""
    try:
        return read_fields(path, shapes)
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


def runtime_folder() -> Path | None:
    """This user's own folder for lock files on this machine, mode 0700; None if there is no place for one."""
    user, given = os.getuid(), os.environ.get("XDG_RUNTIME_DIR")
    places = [Path(given) / "jigclu"] if given else []
    places += [Path(f"/run/user/{user}/jigclu"), Path(tempfile.gettempdir()) / f"jigclu-{user}"]
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(mode=0o700, exist_ok=True, parents=bool(given) and place.parent == Path(str(given)))
            found = place.lstat()
            # Not another user's folder, and no link to one: /tmp belongs to everyone.
            if found.st_uid == user and place.is_dir() and not place.is_symlink() and os.access(place, os.W_OK):
                if found.st_mode & 0o077:
                    place.chmod(0o700)
                return place
    return None


class Shares:
    """Cores and GPUs that this process holds, each by a lock on a file that names the holder.

    A file whose lock is free still counts as held while the job that it names runs: the job of a killed orchestrator.
    """

    def __init__(self, folder: Path):
        self._folder, self._held = folder, dict[str, IO[bytes]]()
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)

    def take(self, names: Iterable[str], most: int = 1, least: int = 1) -> list[str]:
        """Lock up to `most` of the names that are free; none at all if fewer than `least` are."""
        taken: list[str] = []
        for name in names:
            if len(taken) < most and name not in self._held and self._lock(name):
                taken.append(name)
        if len(taken) < least:
            self.give_back(taken)
            return []
        return taken

    def _lock(self, name: str) -> bool:
        file = open(self._folder / name, "ab", buffering=0)  # noqa: SIM115  held until given back
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        if _job_runs(_holder(self._folder / name)):
            file.close()
            return False
        self._held[name] = file
        return True

    def note(self, names: Iterable[str], **holder: Any) -> None:
        """Write who holds these names. `job`: process id of the job that uses them."""
        for name in names:
            with contextlib.suppress(OSError):  # a full disk: the lock holds without the note
                os.ftruncate(number := self._held[name].fileno(), 0)
                os.write(number, json.dumps(holder).encode())

    def give_back(self, names: Iterable[str]) -> None:
        names = list(names)
        self.note(names)
        for name in names:
            self._held.pop(name).close()

    def holder(self, names: Iterable[str]) -> dict[str, Any]:
        """What `note` wrote for the first of these names that somebody else holds; {} if that is not known."""
        others = (_holder(self._folder / name) for name in names if name not in self._held)
        return next(filter(None, others), {})


def _holder(path: Path) -> dict[str, Any]:
    try:
        return read_cache(path)
    except OSError:
        return {}


def _job_runs(holder: Mapping[str, Any]) -> bool:
    """Whether the process that the file names as its job is one of submitit's and still runs."""
    try:
        return b"submitit" in Path(f"/proc/{int(holder['job'])}/cmdline").read_bytes()
    except (OSError, KeyError, TypeError, ValueError):
        return False
