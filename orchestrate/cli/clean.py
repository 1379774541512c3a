"""`clean`: list or remove what no table and no job in the store refers to any more."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.files import locked
from orchestrate.cli.select import all_folders
from orchestrate.console import print_line
from orchestrate.jobs.states import IN_HAND, look
from orchestrate.jobs.submissions import submission, submissions

YOUNG_SECONDS = 3600  # what is younger may be an orchestrator's at work


def clean(store: Path, yes: bool) -> int:
    """List what nothing needs; with `yes`, remove it. Never a result that a cell or another job needs."""
    with locked(store / ".submit.lock"):
        found = unneeded(store)
        for path, what in found:
            print_line(f"{_size(path):>9s}  {path.relative_to(store)}  {what}")
            if yes:
                _remove(path, store)
    if not found:
        print_line("nothing to clean: something needs everything in the store")
    else:
        print_line(f"{len(found)} {'removed' if yes else 'can go: `clean --yes` removes them'}")
    return 0


def unneeded(store: Path) -> list[tuple[Path, str]]:
    """(path, why it can go): jobs that fill no cell and feed no job, frozen trees and submissions of no job, what a kill left."""
    everything = all_folders(store)
    states = look(everything)
    if silent := next((state.no_answer for state in states.values() if state.no_answer), ""):
        raise ConfigError(f"SLURM does not answer, so nothing is cleaned: {silent}")
    needed = {up for folder in everything for up in folder.job.get("upstream", [])}
    gone = [
        folder for folder in everything
        if not folder.job.get("uses") and folder.id not in needed and states[folder.id].name not in IN_HAND
    ]  # fmt: skip
    found = [(folder.path, f"{folder.job.get('name', '')}: no cell takes its result") for folder in gone]
    kept = [folder for folder in everything if folder not in gone]
    groups = {submission(folder).get("group") for folder in kept if states[folder.id].name != "done"}
    trees = {(folder.path / "source").resolve() for folder in kept if (folder.path / "source").is_symlink()}
    for path in (path for path in submissions(store).glob("*") if path.is_dir() and path.name not in groups):
        found.append((path, "a submission whose jobs are done or were submitted again"))
    in_use = {_tree(store, name) for name in groups if name}
    for tree in (store / "source").glob("*"):
        if tree.resolve() not in trees | in_use:
            found.append((tree, "frozen source that no job ran or will run"))
    for pattern in (".*.tmp", "*/*/.*.tmp", "*/*/checkpoint/.*", ".write-*"):
        found += [(path, "left half-written by a kill") for path in store.glob(pattern)]
    for folder in kept:
        if states[folder.id].name == "done":
            found += [(path, "checkpoint of a finished job") for path in folder.path.glob("checkpoint/step-*")]
    now, going = time.time(), {path for path, _ in found}
    return [
        (path, why) for path, why in found
        # Half of something that is young, or a young tree, may be somebody's at work.
        if not going & set(path.parents)
        and (now - path.lstat().st_mtime > YOUNG_SECONDS or not (path.name.startswith(".") or path.parent == store / "source"))
    ]  # fmt: skip


def _tree(store: Path, name: str) -> Path | None:
    """The frozen tree that a submission's script runs from."""
    script = submissions(store) / name / "submission.sh"
    found = [path for path in (store / "source").glob("*") if script.exists() and path.name in script.read_text()]
    return found[0].resolve() if found else None


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file() and not one.is_symlink()]
    size = float(sum(one.stat().st_size for one in files))
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _remove(path: Path, store: Path) -> None:
    """A folder goes under another name first: half of it is never taken for the whole, and the next `clean` finds it."""
    if path.is_dir() and not path.is_symlink():
        aside = store / f".{path.name.lstrip('.')}.{os.getpid()}.tmp"
        os.replace(path, aside)
        shutil.rmtree(aside)
    else:
        path.unlink()
