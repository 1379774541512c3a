"""What one does to jobs that were sent: end them, send them again, remove what nothing needs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.training.folder import JobFolder, locked
from orchestrate import clusters, experiments
from orchestrate.record import plan_of, say, submission, submissions
from orchestrate.squeue import NoAnswer, ask
from orchestrate.states import GOES_ON, IN_HAND, State, look, write_down
from orchestrate.verbs import every, select
from orchestrate.watch import line

AT_ONCE = 200  # ids in one scancel
YOUNG_SECONDS = 3600  # what is younger may be an orchestrator's at work


def cancel(store: Path, words: list[str], yes: bool) -> int:
    """End jobs that wait or run, and what waits for them. Asks first where another experiment needs one of them too."""
    if not words:
        raise ConfigError("cancel what? an experiment, a job's id, or all")
    everything = every(store)
    states = look(everything)
    if silent := next((state.no_answer for state in states.values() if state.no_answer), ""):
        raise ConfigError(f"SLURM does not answer, so nothing is cancelled: {silent}")
    in_hand = {folder.id: folder for folder in everything if states[folder.id].name in IN_HAND}
    named = [folder for folder in select(store, words) if folder.id in in_hand]
    chosen = _with_downstream(in_hand, [folder.id for folder in named])
    if not chosen:
        say("nothing to cancel: none of these jobs waits or runs")
        return 0
    meant = _meant(words, named)
    shared = {one: others for one, folder in chosen.items() if (others := set(folder.job["experiments"]) - meant)}
    for one, folder in chosen.items():
        also = f"  (needed by {', '.join(sorted(shared[one]))})" if one in shared else ""
        say(f"{line(folder, states[one])}{also}")
    question = f"{len(shared)} of them other experiments need too. Cancel all {len(chosen)}?"
    if shared and not yes and not _agreed(question):
        say("nothing was cancelled (--yes cancels without asking)")
        return 1
    return _end(chosen.values(), states)


def _meant(words: list[str], named: list[JobFolder]) -> set[str]:
    """The experiments that whoever says these words gives up: those named, and those of a named job that only one needs."""
    ledger = experiments.every()
    meant = {name for name, one in ledger.items() if "all" in words or {name, one.topic} & set(words)}
    by_id = [folder for folder in named if not meant & set(folder.job["experiments"])]
    return meant.union(*(folder.job["experiments"] for folder in by_id if len(folder.job["experiments"]) == 1))


def _with_downstream(folders: dict[str, JobFolder], start: Iterable[str]) -> dict[str, JobFolder]:
    """Those of `folders` that are in `start` or build, over any number of steps, on one that is."""
    above = {one: folder.job.get("upstream", []) for one, folder in folders.items()}
    chosen, more = dict[str, JobFolder](), set(start)
    while more:
        chosen |= {one: folders[one] for one in folders if one in more}
        more = {one for one in folders if one not in chosen and any(up in chosen for up in above[one])}
    return chosen


def _agreed(question: str) -> bool:
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _end(chosen: Iterable[JobFolder], states: dict[str, State]) -> int:
    """scancel, or a stop signal to what runs here; either way it saves at its next step."""
    chosen, left, walks = list(chosen), list[str](), set[int]()
    ids = [states[folder.id].slurm_id for folder in chosen if states[folder.id].slurm_id]
    try:
        for start in range(0, len(ids), AT_ONCE):
            ask("scancel", *ids[start : start + AT_ONCE])
    except NoAnswer as error:
        raise ConfigError(f"scancel: {error}") from None
    for folder in (folder for folder in chosen if not states[folder.id].slurm_id):
        status, marker = folder.status, submission(folder)
        # The worker; before it has said that it runs, submitit's controller.
        at_work = status if status.get("state") == "running" else marker
        if at_work.get("host") != os.uname().nodename or not at_work.get("pid"):
            left.append(f"{folder.id} runs on {at_work.get('host', 'an unknown host')}")
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(at_work["pid"]), signal.SIGTERM)
        walks |= {int(marker["walk"])} if marker.get("walk") else set()
    say("cancelled: what ran saves at its next step, and goes on from there with `retry` or its run")
    for walk in sorted(walks):
        say(f"the run that started it here (process {walk}) goes on with its other jobs; `kill {walk}` stops it")
    for one in left:
        say(f"not cancelled: {one}; stop it there")
    return 1 if left else 0


def retry(store: Path, words: list[str], cluster: str | None, jobs: int) -> int:
    """Send again what failed, was cancelled, lost or interrupted, and what hangs on it: to `cluster`, or where it was."""
    everything = every(store)
    states = look(everything)
    write_down(everything, states)
    idle = {folder.id: folder for folder in everything if states[folder.id].name in GOES_ON}
    ended = [folder.id for folder in select(store, words) if folder.id in idle and states[folder.id].name != "new"]
    chosen = _with_downstream(idle, ended)
    # And what they build on, be it done, waiting or to be sent as well.
    by_id = {folder.id: folder for folder in everything}
    chosen |= {
        up: by_id[up] for folder in list(chosen.values()) for up in folder.job.get("upstream", []) if up in by_id
    }
    if not chosen:
        say("nothing to retry: no job of these failed, was cancelled, interrupted or lost")
        return 0
    plan = plan_of(chosen.values())
    sites = sorted({str(submission(folder).get("site", "")) for one, folder in chosen.items() if one in idle} - {""})
    if cluster is None and len(sites) > 1:
        raise ConfigError(f"these jobs were sent to {' and '.join(sites)}; say which with --cluster")
    where = clusters.load(cluster or (sites[0] if sites else None))
    clusters.needed(where)
    from orchestrate.preflight import preflight

    preflight([job for job in plan.jobs.values() if job.id in idle], store, where)
    if where.kind == "slurm":
        from orchestrate import slurm

        slurm.submit(plan, store, where)
        return 0
    from orchestrate.local import Walk

    return Walk(plan, store, jobs).run()


def clean(store: Path, yes: bool) -> int:
    """List what nothing needs; with `yes`, remove it. Never a result that a cell or another job needs."""
    with locked(store / ".submit.lock"):
        found = unneeded(store)
        for path, what in found:
            say(f"{_size(path):>9s}  {path.relative_to(store)}  {what}")
            if yes:
                _remove(path, store)
    if not found:
        say("nothing to clean: something needs everything in the store")
    else:
        say(f"{len(found)} {'removed' if yes else 'can go: `clean --yes` removes them'}")
    return 0


def unneeded(store: Path) -> list[tuple[Path, str]]:
    """(path, why it can go): jobs that fill no cell and feed no job, frozen trees and submissions of no job, what a kill left."""
    everything = every(store)
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
