"""What one asks of jobs that were sent: how they are, why they are so, what they wrote."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, nearest, parse
from jigclu.data.catalog import catalogue
from jigclu.data.source import SPLITS
from jigclu.training.folder import JobFolder, clock
from orchestrate import experiments, tracking
from orchestrate.rates import Measured
from orchestrate.record import batch_logs, current_id, group, say, submission
from orchestrate.source import PROJECT, STAGE_MODULES, differing, stage_digest
from orchestrate.states import IN_HAND, State, look, running_now, stale, write_down
from orchestrate.watch import ORDER, count_of, graded, line, summary

FOLLOW_SECONDS = 3
SHORTEST = 4  # characters of a job id that may stand for it


def every(store: Path) -> list[JobFolder]:
    return [JobFolder(path.parent) for path in sorted(store.glob("[a-z]*/[0-9a-f]*/job.json"))]


def select(store: Path, words: list[str]) -> list[JobFolder]:
    """Jobs by experiment (name, topic), by id (or its beginning), by SLURM id; all without words. ConfigError on an unknown one."""
    folders = every(store)
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
            ledger = [*experiments.every(), *(one_.topic for one_ in experiments.every().values())]
            raise ConfigError(f"{word!r} is no job of the store {store} and no experiment; {nearest(word, ledger)}")
        found |= {folder.id: folder for folder in named}
    return list(found.values())


def _of_experiment(word: str, folders: list[JobFolder]) -> list[JobFolder] | None:
    """None where no experiment is called so. ConfigError where it has no jobs yet."""
    ledger = experiments.every()
    name = next((name for name, one in ledger.items() if word in (name, one.topic)), None)
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


def one(store: Path, word: str) -> JobFolder:
    found = select(store, [word])
    if len(found) > 1:
        raise ConfigError(f"{word} is {len(found)} jobs; name one: {', '.join(folder.id for folder in found[:8])}")
    return found[0]


def looked(folders: list[JobFolder]) -> dict[str, State]:
    """Their states, finished ones of other code as stale; how the others ended is written down."""
    states = look(folders)
    write_down(folders, states)
    digests = {stage: stage_digest(stage) for stage in {one.path.parent.name for one in folders} & STAGE_MODULES.keys()}
    for folder in folders:
        if states[folder.id].name == "done" and stale(folder.path.parent.name, folder, digests):
            states[folder.id] = State("stale", "made by other code than the tree's")
    return states


def status(store: Path, words: list[str], everything: bool) -> int:
    """A line a job that is not done (or that was named, or all), and how many are in which state. MLflow is brought up to date."""
    folders = select(store, words)
    states = looked(folders)
    if silent := next((state.no_answer for state in states.values() if state.no_answer), ""):
        say(f"SLURM does not answer ({silent}): states are as far as the job folders tell")
    by_id = len(folders) == len(words)
    shown = [folder for folder in folders if everything or by_id or states[folder.id].name not in ("done", "stale")]
    names = {folder.id: folder.job.get("name", "") for folder in shown}
    for folder in sorted(shown, key=lambda one: (ORDER.index(states[one.id].name), names[one.id])):
        say(line(folder, states[folder.id], names[folder.id]))
    say(f"{count_of(len(folders))}: {summary(states)}" if folders else f"no jobs in the store {store} yet")
    if told := Measured(store).graded():
        say(f"estimates: {told}")
    _mirror_aside(store)
    return 0


def _mirror_aside(store: Path) -> None:
    """Bring MLflow up to date without anyone waiting for it; with a server each job does so itself."""
    if tracking.is_server(tracking.tracking_uri(store)):
        return
    (store / ".mirror").mkdir(exist_ok=True, mode=0o700)
    with open(store / ".mirror" / "sync.log", "w") as log:
        command, env = (
            [sys.executable, "-m", "orchestrate", "sync", "--quiet"],
            {**os.environ, "JIGCLU_STORE": str(store)},
        )
        subprocess.Popen(
            command, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def why(store: Path, word: str) -> int:
    """Everything that is known of one job: its state and what it is judged by, what it is for, what made it, what it cost."""
    folder = one(store, word)
    states = looked([folder])
    state, job, result = states[folder.id], folder.job, folder.result
    say(f"{folder.id}  {job.get('name', '')}\n")
    told: list[tuple[str, str]] = [("state", f"{state.name}  {state.note}")]
    told += [("judged by", evidence) for evidence in _evidence(folder, state)]
    uses = sorted({f"{use['experiment']} {use['cell']} ({use['metric']})" for use in job.get("uses", [])})
    told += [("fills", use) for use in uses] or [
        ("needed by", ", ".join(job.get("experiments", [])) or "nothing any more")
    ]
    above = [JobFolder(path) for up in job.get("upstream", []) for path in store.glob(f"[a-z]*/{up}")]
    told += [
        ("builds on", f"{up.id}  {state.name}  {up.job.get('name', '')}")
        for up, state in zip(above, looked(above).values(), strict=True)
    ]
    told += [("attempt", text) for text in _attempts(folder)]
    told += [("made by", text) for text in _made_by(folder)]
    marker = submission(folder)
    if estimate := marker.get("estimate_hours"):
        took = f"; it took {graded(folder)}" if result and graded(folder) else ""
        told.append(("estimate", f"{clock(3600 * estimate)} by {marker['estimate_by']}{took}"))
    if result:
        told.append(("took", f"{clock(result['seconds'])} on {result.get('world', 1)} x {result.get('device', '')}"))
    told += [("log", str(path)) for path in log_paths(folder)]
    told.append(("folder", str(folder.path)))
    told.append(("command", str(job.get("command", ""))))
    for what, text in told:
        say(f"{what + ':':11s} {text.strip()}")
    return 0


def _evidence(folder: JobFolder, state: State) -> list[str]:
    status, marker = folder.status, submission(folder)
    told = ["result.json is " + ("there" if folder.done else "not there")]
    if status:
        since = clock(time.time() - float(status.get("heartbeat", time.time())))
        told.append(
            f"status.json: {status.get('state')}, step {status.get('step', 0)}, {since} ago on {status.get('host')}"
        )
    told.append("its lock is held: it runs" if running_now(folder) else "its lock is free")
    if marker.get("group"):
        name = group(folder.store, marker["group"]).get("name", "")
        told.append(
            f"submitted {_when(marker['submitted'])} to {marker['site']} as {current_id(folder) or '(no id yet)'}, {name}"
        )
        if state.no_answer:
            told.append(f"SLURM does not answer: {state.no_answer}")
        elif row := state.row:
            where = "squeue" if row.script else "sacct"
            said = (
                row.state,
                row.reason if row.reason != "None" else "",
                row.nodes,
                f"exit code {row.exit_code}" if row.ended else "",
            )
            told.append(f"{where}: {'  '.join(word for word in said if word)}")
        elif not folder.done:
            told.append("squeue and sacct have no record of it")
    elif marker:
        told.append(f"started {_when(marker['submitted'])} on {marker.get('host')} as process {marker.get('pid')}")
    return told


def _attempts(folder: JobFolder) -> list[str]:
    return [
        f"{number} from step {one['step']}, {_when(one['began'])} on {one['host']}"
        + (f", SLURM {one['slurm_job_id']}" if one["slurm_job_id"] else "")
        for number, one in enumerate(folder.status.get("attempts", []), 1)
    ]


def _made_by(folder: JobFolder) -> list[str]:
    """The code and the bytes behind it, and which of them are no longer the tree's and the data root's."""
    job, stage = folder.job, folder.path.parent.name
    if not job.get("source_digest"):
        return []
    dirty = " with uncommitted changes" if job.get("dirty") else ""
    told = [f"commit {str(job.get('commit', ''))[:12]}{dirty}, source {job['source_digest']}"]
    if job["source_digest"] != stage_digest(stage):
        files = differing(stage, folder.path / "source")
        told.append(
            f"the tree is at {stage_digest(stage)}: {', '.join(files) or 'files unknown, its frozen copy is gone'} differ"
        )
    if (recorded := job.get("data_fingerprint")) and stage != "detect":
        try:
            data: Any = parse(stage, job["config"]).data
            prints = [catalogue(data, split).fingerprint for split in SPLITS[: recorded.count("+") + 1]]
            same = "the same as" if "+".join(prints) == recorded else "other than"
            told.append(f"data {recorded}, {same} what the data root has now")
        except ConfigError:
            told.append(f"data {recorded}; the data root here does not have it")
    return told


def _when(stamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stamp))


def logs(store: Path, word: str, follow: bool) -> int:
    """Print the job's logs, oldest first, each after its path; with `follow` the newest one as it grows (through tail)."""
    folder = one(store, word)
    paths = log_paths(folder)
    if not paths:
        state = look([folder])[folder.id]
        raise ConfigError(f"{folder.id} has no log yet: it is {state.name}  {state.note}".rstrip())
    if follow:
        return _follow(folder, paths[-1])
    for path in paths:
        say(f"==> {path} <==")
        sys.stdout.write(path.read_text(errors="replace"))
    sys.stdout.flush()
    return 0


def _follow(folder: JobFolder, path: Path) -> int:
    """tail -F, until the job is no longer in hand."""
    say(f"==> {path} <==")
    tail = subprocess.Popen(["tail", "-n", "100", "-F", str(path)])
    try:
        while look([folder])[folder.id].name in IN_HAND and tail.poll() is None:
            time.sleep(FOLLOW_SECONDS)
        time.sleep(1)  # what it wrote last
        return 0
    finally:
        tail.terminate()
        tail.wait()


def log_paths(folder: JobFolder) -> list[Path]:
    """Rank 0's log (of a job that is not done every rank's) and what the last batch script said. Oldest first, no empty ones."""
    rank = "0" if folder.done else "*"
    found = [*folder.path.glob(f"logs/*_{rank}_log.out"), *folder.path.glob(f"logs/*_{rank}_log.err")]
    found += batch_logs(folder)
    return sorted((path for path in found if path.stat().st_size), key=lambda path: path.stat().st_mtime)
