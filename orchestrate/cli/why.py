"""`why JOB`: everything that is known about one job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, parse
from jigclu.data.catalog import catalogue
from jigclu.data.sources.base import SPLITS
from jigclu.job_folder import JobFolder, clock
from orchestrate.cli.display import graded
from orchestrate.cli.logs import log_paths
from orchestrate.cli.select import look_and_record, single
from orchestrate.console import print_line
from orchestrate.jobs.snapshot import differing, stage_digest
from orchestrate.jobs.states import State, running_now
from orchestrate.jobs.submissions import current_id, group, submission


def why(store: Path, word: str) -> int:
    """Everything that is known of one job: its state and what it is judged by, what it is for, what made it, what it cost."""
    folder = single(store, word)
    states = look_and_record([folder])
    state, job, result = states[folder.id], folder.job, folder.result
    print_line(f"{folder.id}  {job.get('name', '')}\n")
    told: list[tuple[str, str]] = [("state", f"{state.name}  {state.note}")]
    told += [("judged by", evidence) for evidence in _evidence(folder, state)]
    uses = sorted({f"{use['experiment']} {use['cell']} ({use['metric']})" for use in job.get("uses", [])})
    told += [("fills", use) for use in uses] or [
        ("needed by", ", ".join(job.get("experiments", [])) or "nothing any more")
    ]
    above = [JobFolder(path) for up in job.get("upstream", []) for path in store.glob(f"[a-z]*/{up}")]
    told += [
        ("builds on", f"{up.id}  {state.name}  {up.job.get('name', '')}")
        for up, state in zip(above, look_and_record(above).values(), strict=True)
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
        print_line(f"{what + ':':11s} {text.strip()}")
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
        f"{number} from step {single['step']}, {_when(single['began'])} on {single['host']}"
        + (f", SLURM {single['slurm_job_id']}" if single["slurm_job_id"] else "")
        for number, single in enumerate(folder.status.get("attempts", []), 1)
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
