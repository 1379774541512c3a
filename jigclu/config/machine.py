"""The cores that this process may use, and lock files by which one user's runs share a machine's cores and GPUs. No torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from jigclu.config.base import ConfigError


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may use: its CPU affinity, cut to the CPU quota of its container."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # `max 100000` without a quota
        cores = cores[: max(1, int(quota) // int(period))]
    return cores


def threads_from_environment(environment: Mapping[str, str] = os.environ) -> int | None:
    """JIGCLU_THREADS; None if it is not set. ConfigError if it is no whole number above 0."""
    given = environment.get("JIGCLU_THREADS", "").strip()
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"JIGCLU_THREADS={given}: give a whole number of CPU threads, at least 1, or unset it")
    return int(given)


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
        self._folder, self._held = folder, dict[str, IO[str]]()
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
        file = open(self._folder / name, "a+")  # noqa: SIM115  held until given back
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        if _job_runs(_read(file)):
            file.close()
            return False
        self._held[name] = file
        return True

    def note(self, names: Iterable[str], **holder: Any) -> None:
        """Write who holds these names. `job`: process id of the job that uses them."""
        for name in names:
            file = self._held[name]
            file.seek(0)
            file.truncate()
            file.write(json.dumps(holder))
            file.flush()

    def give_back(self, names: Iterable[str]) -> None:
        names = list(names)
        self.note(names)
        for name in names:
            self._held.pop(name).close()

    def holder(self, names: Iterable[str]) -> dict[str, Any]:
        """What `note` wrote for the first of these names that somebody else holds; {} if that is not known."""
        for name in names:
            with contextlib.suppress(OSError):
                if name not in self._held and (found := _read(open(self._folder / name))):  # noqa: SIM115
                    return found
        return {}


def _read(file: IO[str]) -> dict[str, Any]:
    try:
        file.seek(0)
        return dict(json.load(file))
    except (ValueError, TypeError):
        return {}


def _job_runs(holder: Mapping[str, Any]) -> bool:
    """Whether the process that the file names as its job is one of submitit's and still runs."""
    try:
        return b"submitit" in Path(f"/proc/{int(holder['job'])}/cmdline").read_bytes()
    except (OSError, KeyError, TypeError, ValueError):
        return False


def core_names(cores: Iterable[int]) -> list[str]:
    return [f"core{core}" for core in cores]
