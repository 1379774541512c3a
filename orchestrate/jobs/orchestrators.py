"""The orchestrators that run jobs on a machine: which jobs each still has, and which of them are cancelled.

<store>/.orchestrators/<host>-<pid>.json is written by the orchestrator, which holds a lock beside it while it lives;
<host>-<pid>.cancel is written by `cancel` under the store's submission lock, and read by the orchestrator.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jigclu.files import COUNT, PID, TEXT, TEXTS, read_cached_fields, read_fields, write_json


@dataclass(frozen=True)
class Orchestrator:
    """A live orchestrator. `jobs`: ids of its plan's jobs that have not ended; `slots`: how many it runs at once."""

    path: Path
    host: str
    pid: int
    jobs: tuple[str, ...]
    slots: int

    @property
    def here(self) -> bool:
        return self.host == os.uname().nodename

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Have it give up these jobs. Call with the store's submission lock held."""
        path = self.path.with_suffix(".cancel")
        write_json(path, {"jobs": sorted({*_named(path), *job_ids})})


def _named(path: Path) -> set[str]:
    """Ids of the jobs in a .cancel file; one that is damaged names none."""
    return set(read_cached_fields(path, {"jobs": TEXTS}).get("jobs", []))


class Registration:
    """This process's entry, from `with` to its end."""

    def __init__(self, store: Path, slots: int):
        self._path = store / ".orchestrators" / f"{os.uname().nodename}-{os.getpid()}.json"
        self._slots, self._jobs = slots, list[str]()

    def __enter__(self) -> Registration:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = open(self._path.with_suffix(".lock"), "a")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._path.with_suffix(".cancel").unlink(missing_ok=True)  # of an earlier process with this id
        return self

    @property
    def is_there(self) -> bool:
        """False: the store was moved or deleted."""
        return self._path.with_suffix(".lock").exists()

    def __exit__(self, *_: object) -> None:
        for suffix in (".json", ".cancel", ".lock"):
            self._path.with_suffix(suffix).unlink(missing_ok=True)
        self._lock.close()
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()  # not empty: another orchestrator is there

    def note_jobs(self, job_ids: Iterable[str]) -> None:
        """The jobs that have not ended."""
        if (jobs := sorted(job_ids)) != self._jobs:
            self._jobs = jobs
            values = {"host": os.uname().nodename, "pid": os.getpid(), "jobs": jobs, "slots": self._slots}
            write_json(self._path, values)

    def cancelled(self) -> set[str]:
        """Ids of the jobs that `cancel` named."""
        return _named(self._path.with_suffix(".cancel"))


def live(store: Path) -> list[Orchestrator]:
    """The store's orchestrators that are alive, on any machine that shares the store."""
    return list(_live(store))


def _live(store: Path) -> Iterator[Orchestrator]:
    for path in sorted((store / ".orchestrators").glob("*.json")):
        try:
            with open(path.with_suffix(".lock")) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            continue  # nobody holds it
        except BlockingIOError:
            pass
        except OSError:
            continue
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            values = read_fields(path, {"pid": PID, "jobs": TEXTS, "host": TEXT, "slots": COUNT})
            jobs, slots = tuple(values["jobs"]), int(values["slots"])
            yield Orchestrator(path, str(values["host"]), int(values["pid"]), jobs, slots)


def waiting_for(store: Path) -> set[str]:
    """Ids of the jobs that a live orchestrator runs or will run."""
    return {job_id for orchestrator in live(store) for job_id in orchestrator.jobs}
