"""`clean`: list or remove everything that no table and no job in the store refers to any more."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.files import locked
from jigclu.job_folder import JobFolder
from orchestrate.cli.select import all_folders, sorted_folders
from orchestrate.console import print_line
from orchestrate.jobs.states import ACTIVE, State, look
from orchestrate.jobs.submissions import SCRIPT, submission, submissions_folder

YOUNG_SECONDS = 3600  # an orchestrator may still be writing a younger file
Garbage = Iterator[tuple[Path, str]]  # (path, why it can be removed)


def clean(store: Path, yes: bool) -> int:
    """List everything that is unreferenced; with `yes`, remove it. Never a result that a cell or another job needs."""
    with locked(store / ".submit.lock"):
        found = unneeded(store)
        for path, reason in found:
            print_line(f"{_size(path):>9s}  {path.relative_to(store)}  {reason}")
            if yes:
                _remove(path, store)
    if not found:
        print_line("nothing to clean: every file is still referenced")
    else:
        print_line(f"{len(found)} {'removed' if yes else 'can be removed: `clean --yes` does it'}")
    return 0


def unneeded(store: Path) -> list[tuple[Path, str]]:
    """(path, why it can be removed). ConfigError if SLURM does not answer."""
    folders = all_folders(store)
    states = look(folders)
    if error := next((state.no_answer for state in states.values() if state.no_answer), ""):
        raise ConfigError(f"SLURM does not answer, so nothing is cleaned: {error}")
    jobs = _Jobs(store, folders, states)
    found = [
        *_unused_jobs(jobs),
        *_old_submissions(jobs),
        *_unused_trees(jobs),
        *_torn_files(jobs),
        *_finished_checkpoints(jobs),
    ]
    going = {path for path, _ in found}
    return [(path, reason) for path, reason in found if not going & set(path.parents)]


@dataclass(frozen=True)
class _Jobs:
    """The store's jobs and their states, and which of them are needed."""

    store: Path
    folders: list[JobFolder]
    states: dict[str, State]

    @cached_property
    def unused(self) -> list[JobFolder]:
        """Jobs that are not active, fill no cell and are upstream of no job."""
        if sorted_folders(self.store)[1]:
            return []  # a job that cannot be read may need any of them
        upstream = {job_id for folder in self.folders for job_id in folder.job.get("upstream", [])}
        return [
            folder for folder in self.folders
            if not folder.job.get("uses") and folder.id not in upstream and self.states[folder.id].name not in ACTIVE
        ]  # fmt: skip

    @cached_property
    def kept(self) -> list[JobFolder]:
        unused = {folder.path for folder in self.unused}
        return [folder for folder in self.folders if folder.path not in unused]

    @cached_property
    def groups(self) -> set[str]:
        """Names of the submissions of jobs that are kept and not done."""
        names = (submission(folder).get("group") for folder in self.kept if self.states[folder.id].name != "done")
        return {name for name in names if name}


def _unused_jobs(jobs: _Jobs) -> Garbage:
    for folder in jobs.unused:
        yield folder.path, f"{folder.job.get('name', '')}: no cell uses its result"


def _old_submissions(jobs: _Jobs) -> Garbage:
    for path in submissions_folder(jobs.store).glob("*"):
        if path.is_dir() and path.name not in jobs.groups:
            yield path, "a submission whose jobs are done or were submitted again"


def _unused_trees(jobs: _Jobs) -> Garbage:
    links = [folder.path / "source" for folder in jobs.kept]
    in_use = {link.resolve() for link in links if link.is_symlink()}
    in_use |= {tree for name in jobs.groups if (tree := _tree_of_submission(jobs.store, name))}
    for tree in (jobs.store / "source").glob("*"):
        if tree.resolve() not in in_use and not _is_young(tree):  # a young tree may be about to be used
            yield tree, "frozen source that no job ran or will run"


def _torn_files(jobs: _Jobs) -> Garbage:
    for pattern in (".*.tmp", "*/*/.*.tmp", "*/*/checkpoint/.*", ".write-*"):
        for path in jobs.store.glob(pattern):
            if not _is_young(path):  # a young one may still be being written
                yield path, "left incomplete by a kill"


def _finished_checkpoints(jobs: _Jobs) -> Garbage:
    for folder in jobs.kept:
        if jobs.states[folder.id].name == "done":
            for path in folder.path.glob("checkpoint/step-*"):
                yield path, "checkpoint of a finished job"


def _is_young(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime <= YOUNG_SECONDS


def _tree_of_submission(store: Path, name: str) -> Path | None:
    """The frozen tree that a submission's script runs from."""
    script = submissions_folder(store) / name / SCRIPT
    found = [
        path
        for path in (store / "source").glob("*")
        if script.exists() and path.name in script.read_text(encoding="utf-8")
    ]
    return found[0].resolve() if found else None


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    size = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _remove(path: Path, store: Path) -> None:
    """A folder is renamed first, so that after a kill the rest is not taken for a whole folder and `clean` finds it."""
    if path.is_dir() and not path.is_symlink():
        temporary = store / f".{path.name.lstrip('.')}.{os.getpid()}.tmp"
        os.replace(path, temporary)
        shutil.rmtree(temporary)
    else:
        path.unlink()
