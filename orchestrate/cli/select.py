"""Which jobs the words of a command mean: by experiment, topic, job id or SLURM id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from jigclu.config import ConfigError, nearest
from jigclu.job_folder import JobFolder
from orchestrate.jobs.snapshot import STAGE_MODULES, stage_digest
from orchestrate.jobs.states import State, look, stale, write_down
from orchestrate.jobs.submissions import current_id
from orchestrate.planning import experiments

SHORTEST = 4  # characters of a job id that may stand for it


def all_folders(store: Path) -> list[JobFolder]:
    return [JobFolder(path.parent) for path in sorted(store.glob("[a-z]*/[0-9a-f]*/job.json"))]


def select(store: Path, words: list[str]) -> list[JobFolder]:
    """Jobs by experiment (name, topic), by id (or its beginning), by SLURM id; all without words. ConfigError on an unknown one."""
    folders = all_folders(store)
    if not words or words == ["all"]:
        return folders
    found: dict[str, JobFolder] = {}
    for word in words:
        named = _of_experiment(word, folders)
        named = named if named is not None else _by_id(word, folders)
        if not named:
            if re.fullmatch("[0-9a-f_]+", word):
                raise ConfigError(
                    f"no job of the store {store} has the id {word!r} (at least {SHORTEST} characters of it, or SLURM's)"
                )
            ledger = [*experiments.load_all(), *(one_.topic for one_ in experiments.load_all().values())]
            raise ConfigError(f"{word!r} is no job of the store {store} and no experiment; {nearest(word, ledger)}")
        found |= {folder.id: folder for folder in named}
    return list(found.values())


def _of_experiment(word: str, folders: list[JobFolder]) -> list[JobFolder] | None:
    """None where no experiment is called so. ConfigError where it has no jobs yet."""
    ledger = experiments.load_all()
    name = next((name for name, single in ledger.items() if word in (name, single.topic)), None)
    if name is None:
        return None
    if not (found := [folder for folder in folders if name in folder.job.get("experiments", [])]):
        raise ConfigError(f"no job of {name} is in the store; run it first: python orchestrate/run.py {name}")
    return found


def _by_id(word: str, folders: list[JobFolder]) -> list[JobFolder]:
    by_id = [folder for folder in folders if len(word) >= SHORTEST and folder.id.startswith(word)]
    if len(by_id) > 1 and word not in [folder.id for folder in by_id]:
        raise ConfigError(f"{word!r} is the beginning of {', '.join(folder.id for folder in by_id)}; write more of it")
    return by_id or [folder for folder in folders if word in (folder.status.get("slurm_job_id"), current_id(folder))]


def single(store: Path, word: str) -> JobFolder:
    found = select(store, [word])
    if len(found) > 1:
        raise ConfigError(f"{word} is {len(found)} jobs; name one: {', '.join(folder.id for folder in found[:8])}")
    return found[0]


def look_and_record(folders: list[JobFolder]) -> dict[str, State]:
    """Their states, finished ones of other code as stale; how the others ended is written down."""
    states = look(folders)
    write_down(folders, states)
    digests = {
        stage: stage_digest(stage) for stage in {single.path.parent.name for single in folders} & STAGE_MODULES.keys()
    }
    for folder in folders:
        if states[folder.id].name == "done" and stale(folder.path.parent.name, folder, digests):
            states[folder.id] = State("stale", "made by other code than the tree's")
    return states


def with_downstream(folders: dict[str, JobFolder], start: Iterable[str]) -> dict[str, JobFolder]:
    """Those of `folders` that are in `start` or build, over any number of steps, on one that is."""
    above = {single: folder.job.get("upstream", []) for single, folder in folders.items()}
    chosen, more = dict[str, JobFolder](), set(start)
    while more:
        chosen |= {single: folders[single] for single in folders if single in more}
        more = {single for single in folders if single not in chosen and any(up in chosen for up in above[single])}
    return chosen
