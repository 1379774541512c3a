"""Which jobs the words of a command mean: by experiment, topic, job id or SLURM id."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jigclu.config import ConfigError, nearest
from jigclu.files import UnreadableFile
from jigclu.job_folder import JobFolder
from orchestrate.jobs.staleness import Staleness
from orchestrate.jobs.states import State, look, record_ends
from orchestrate.jobs.submissions import current_id
from orchestrate.planning import experiments
from orchestrate.preflight import foreign_file

SHORTEST = 4  # characters of a job id that may stand for it
AGAIN = "its `jigclu run` command writes the file again"
LISTING = "`jigclu status --all` lists the jobs"


def check_store(store: Path) -> None:
    """Raises ConfigError unless the folder is there and is a store, or empty: a mistyped path is no store without jobs."""
    how = "run an experiment first (`jigclu run table8 --scale smoke`), or set JIGCLU_STORE"
    try:
        foreign = foreign_file(store)
    except FileNotFoundError:
        raise ConfigError(f"there is no store at {store.absolute()}; {how}") from None
    except OSError as error:
        raise ConfigError(f"the store {store.absolute()} cannot be read ({error.strerror}); {how}") from None
    if foreign:
        raise ConfigError(f"{store.absolute()} is no store: it has other files, such as {foreign}; {how}")


def all_folders(store: Path) -> list[JobFolder]:
    """The store's jobs. Those whose job.json is unreadable are left out, with one line each on standard error."""
    readable, problems = sorted_folders(store)
    for problem in problems.values():
        _warn(f"{problem}: the job is left out; {AGAIN}")
    return readable


@cache
def _warn(text: str) -> None:
    """Once, however often a command looks at the store."""
    print(f"warning: {text}", file=sys.stderr)


def sorted_folders(store: Path) -> tuple[list[JobFolder], dict[str, str]]:
    """(jobs whose job.json can be read, what is wrong with the others' by job id)."""
    readable, problems = [], dict[str, str]()
    for path in sorted(store.glob("[a-z]*/[0-9a-f]*/job.json")):
        try:
            folder = JobFolder(path.parent)
            if not folder.job:
                raise UnreadableFile(f"{path} holds nothing")
            readable.append(folder)
        except UnreadableFile as error:
            problems[path.parent.name] = str(error)
    return readable, problems


def select(store: Path, words: list[str]) -> list[JobFolder]:
    """Jobs by experiment (name, topic), by id (or its beginning), by SLURM id; without words all.

    ConfigError if unknown.
    """
    folders = all_folders(store)
    if not words or words == ["all"]:
        return folders
    found: dict[str, JobFolder] = {}
    for word in words:
        named = _of_experiment(word, folders)
        named = named if named is not None else _by_id(word, folders)
        if not named:
            raise _unknown(word, store)
        found |= {folder.id: folder for folder in named}
    return list(found.values())


def _unknown(word: str, store: Path, one_job: bool = False) -> ConfigError:
    """The mistake in a word that means no job."""
    damaged = [text for job_id, text in sorted_folders(store)[1].items() if job_id.startswith(word)]
    if damaged and len(word) >= SHORTEST:
        return ConfigError(f"{damaged[0]}; {AGAIN}")
    if re.fullmatch("[0-9a-f_]+", word):
        if len(word) < SHORTEST:
            return ConfigError(f"{word!r} is too short: give at least {SHORTEST} characters of a job's id")
        return ConfigError(
            f"no job of the store {store} has the id {word!r} (at least {SHORTEST} characters, or SLURM's id); {LISTING}"
        )
    if one_job:
        return ConfigError(f"{word!r} is no job of the store {store}; {LISTING}")
    names = [word for pair in experiments.topics().items() for word in pair]
    return ConfigError(f"{word!r} is no job of the store {store} and no experiment; {nearest(word, names)}")


def _of_experiment(word: str, folders: list[JobFolder]) -> list[JobFolder] | None:
    """None if no experiment has this name or topic. ConfigError if the experiment has no jobs yet."""
    name = next((name for name, topic in experiments.topics().items() if word in (name, topic)), None)
    if name is None:
        return None
    if not (found := [folder for folder in folders if name in folder.job.get("experiments", [])]):
        raise ConfigError(f"no job of {name} is in the store; run it first: jigclu run {name}")
    return found


def _by_id(word: str, folders: list[JobFolder]) -> list[JobFolder]:
    by_id = [folder for folder in folders if len(word) >= SHORTEST and folder.id.startswith(word)]
    if len(by_id) > 1 and word not in [folder.id for folder in by_id]:
        raise ConfigError(f"{word!r} is the beginning of {', '.join(folder.id for folder in by_id)}; type more of it")
    return by_id or [folder for folder in folders if word in (folder.status.get("slurm_job_id"), current_id(folder))]


def _names() -> set[str]:
    return {"all", *(word for pair in experiments.topics().items() for word in pair)}


def select_one(store: Path, word: str) -> JobFolder:
    """The one job that a word means. ConfigError if it means several."""
    if word not in _names() and not _by_id(word, all_folders(store)):
        raise _unknown(word, store, one_job=True)
    found = select(store, [word])
    if len(found) > 1:
        raise ConfigError(f"{word} is {len(found)} jobs; name one: {', '.join(folder.id for folder in found[:8])}")
    return found[0]


def look_and_record(folders: list[JobFolder]) -> dict[str, State]:
    """Their states, with `stale` for a result of other code or data. Records how the others ended."""
    states = look(folders)
    record_ends(folders, states)
    staleness = Staleness()
    for folder in folders:
        if states[folder.id].name == "done" and (reason := staleness.reason(folder)):
            states[folder.id] = State("stale", reason)
    return states


def with_downstream(folders: dict[str, JobFolder], start: Iterable[str]) -> dict[str, JobFolder]:
    """Those of `folders` (by job id) that are in `start`, and their dependents, direct and indirect."""
    upstream = {job_id: folder.job.get("upstream", []) for job_id, folder in folders.items()}
    chosen, added = dict[str, JobFolder](), set(start)
    while added:
        chosen |= {job_id: folders[job_id] for job_id in folders if job_id in added}
        added = {job_id for job_id in folders if job_id not in chosen and any(up in chosen for up in upstream[job_id])}
    return chosen
