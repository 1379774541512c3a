"""`why JOB`: everything that is known about one job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jigclu.data.sources.base import SPLITS
from jigclu.job_folder import JobFolder, duration
from orchestrate.cli.logs import log_paths
from orchestrate.cli.select import look_and_record, select_one
from orchestrate.console import COLUMNS, print_line, wrapped
from orchestrate.jobs.snapshot import differing, stage_digest
from orchestrate.jobs.spent import SPENT, device_hours, device_kind, hours_spent, took
from orchestrate.jobs.staleness import Staleness
from orchestrate.jobs.states import State, running_now
from orchestrate.jobs.submissions import current_id, read_group, submission


def why(store: Path, word: str) -> int:
    """Print everything that is known about one job: its state and the evidence, its cells, code, data and cost."""
    folder = select_one(store, word)
    state = look_and_record([folder])[folder.id]
    print_line(f"{folder.id}  {folder.job.get('name', '')}\n")
    for label, text in _lines(folder, state):
        print_line(f"{label + ':' if label else '':12s} {text.strip()}")
    return 0


def _lines(folder: JobFolder, state: State) -> Iterator[tuple[str, str]]:
    """(label, text) of each line."""
    job = folder.job
    yield "state", f"{state.name}  {state.note}"
    yield from (("evidence", text) for text in _evidence(folder, state))
    uses = sorted({f"{use['experiment']} {use['cell']} ({use['metric']})" for use in job.get("uses", [])})
    yield from (("result for", use) for use in uses)
    if not uses:
        yield "required by", ", ".join(job.get("experiments", [])) or "nothing any more"
    upstream = [JobFolder(path) for job_id in job.get("upstream", []) for path in folder.store.glob(f"[a-z]*/{job_id}")]
    upstream_states = look_and_record(upstream)
    for other in upstream:
        yield "upstream", f"{other.id}  {upstream_states[other.id].name}  {other.job.get('name', '')}"
    yield from (("attempt", text) for text in _attempts(folder))
    yield from (("made by", text) for text in _made_by(folder))
    marker = submission(folder)
    yield from _cost(folder, marker)
    yield from (("log", str(path)) for path in log_paths(folder))
    yield "folder", str(folder.path)
    yield "command", str(job.get("command", ""))


def _cost(folder: JobFolder, marker: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Estimated and spent, by the one definition of orchestrate/jobs/spent.py."""
    result = folder.result
    kind = device_kind(str(result.get("device", ""))) if result else "GPU" if marker.get("ranks", 1) > 1 else ""
    if estimate := marker.get("estimate_hours"):
        wall = estimate / (marker.get("ranks") or 1) / (marker.get("share") or 1.0)
        hours = f", {device_hours(estimate, kind)}" if kind else ""
        by = f", by {marker['estimate_by']}" if "estimate_by" in marker else ""
        yield "estimated", f"{duration(3600 * wall)}{hours}{by}"
    spent, text = hours_spent(folder), took(folder)
    if spent is not None and text:
        hours = f", {device_hours(spent, kind)}" if kind else ""
        on = f" on {result.get('world', 1)} x {result.get('device', '')}" if result else " so far"
        yield "spent", f"{text}{hours}{on}"
        yield from (("", line) for line in wrapped(SPENT, COLUMNS - 13).splitlines())


def _evidence(folder: JobFolder, state: State) -> list[str]:
    """What the state was derived from."""
    status, marker = folder.status, submission(folder)
    there = (folder.path / "result.json").exists()
    lines = folder.problems or ["result.json exists" if there else "there is no result.json"]
    if status:
        age = duration(time.time() - float(status.get("heartbeat", time.time())))
        step = status.get("step", 0)
        lines.append(f"status.json: {status.get('state')}, step {step}, {age} ago on {status.get('host')}")
    lines.append("its lock is held: it runs" if running_now(folder) else "its lock is free")
    if marker.get("group"):
        name = read_group(folder.store, marker["group"]).get("name", "")
        slurm_id = current_id(folder) or "(no id yet)"
        lines.append(f"submitted {_local_time(marker['submitted'])} to {marker['site']} as {slurm_id}, {name}")
        if state.no_answer:
            lines.append(f"SLURM does not answer: {state.no_answer}")
        elif row := state.row:
            reason = row.reason if row.reason != "None" else ""
            exit_code = f"exit code {row.exit_code}" if row.ended else ""
            words = "  ".join(filter(None, (row.state, reason, row.nodes, exit_code)))
            lines.append(f"{'squeue' if row.script else 'sacct'}: {words}")
        elif not folder.done:
            lines.append("squeue and sacct have no record of it")
    elif marker:
        started = f"started {_local_time(marker['submitted'])}" if "submitted" in marker else "started"
        lines.append(f"{started} on {marker.get('host')} as process {marker.get('pid')}")
    return lines


def _attempts(folder: JobFolder) -> list[str]:
    return [
        f"{number} from step {attempt.get('step', 0)}, {_local_time(attempt['began'])} on {attempt.get('host', 'unknown')}"
        + (f", SLURM {attempt['slurm_job_id']}" if attempt.get("slurm_job_id") else "")
        for number, attempt in enumerate(folder.status.get("attempts", []), 1)
    ]


def _made_by(folder: JobFolder) -> list[str]:
    """The code version and the data behind the job, and whether the tree and the data root still have the same."""
    job, stage = folder.job, folder.path.parent.name
    if not job.get("source_digest"):
        return []
    dirty = " with uncommitted changes" if job.get("dirty") else ""
    commit = f"commit {job['commit'][:12]}{dirty}" if job.get("commit") else "no commit (no git repository)"
    lines = [f"{commit}, source {job['source_digest']}"]
    if job["source_digest"] != stage_digest(stage):
        files = differing(stage, folder.path / "source")
        names = ", ".join(files) or "files unknown (the frozen copy is gone)"
        lines.append(f"the tree is at {stage_digest(stage)}: {names} differ")
    if job.get("data_fingerprint"):
        lines.append(_data_line(stage, job))
    return lines


def _data_line(stage: str, job: dict[str, Any]) -> str:
    """Compares the recorded fingerprints (one per split, joined by +) with those of the data root."""
    recorded, now = job["data_fingerprint"], Staleness().fingerprint(stage, job)
    if not now:
        return f"data {recorded}; the data root does not have it"
    if now == recorded:
        return f"data {recorded}, the same as the data root has now"
    pairs = zip(SPLITS, recorded.split("+"), now.split("+"), strict=False)
    changed = [split for split, before, after in pairs if before != after]
    return f"data {recorded}; the data root has a different version of {' and '.join(changed)}"


def _local_time(stamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stamp))
