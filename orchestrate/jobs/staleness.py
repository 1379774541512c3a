"""Finished jobs whose code or data has changed since: found, explained, and set aside to be run again."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from typing import Any

from jigclu.config import ConfigError, parse
from jigclu.data.catalog import current_fingerprint
from jigclu.files import UnreadableFile
from jigclu.job_folder import JobFolder
from orchestrate.jobs.snapshot import STAGE_MODULES, stage_digest

OTHER_CODE = "made by a different code version"
EARLIER = "earlier"  # in a job folder: the results that were set aside, each in a folder named after the time
MOVED = ("result.json", "encoder.pt", "encoder.pt.sha256", "metrics.jsonl", "correct.bits", "figures", "checkpoint")


class Staleness:
    """Why finished jobs are stale. Digests and fingerprints are computed once."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        self._fingerprints: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def reason(self, folder: JobFolder) -> str:
        """What has changed since the job finished, in words; "" if nothing has, or if it is not done."""
        if folder.id not in self._reasons:
            self._reasons[folder.id] = ""  # should damaged files make a job its own upstream
            self._reasons[folder.id] = self._reason(folder)
        return self._reasons[folder.id]

    def _reason(self, folder: JobFolder) -> str:
        stage, result = folder.path.parent.name, folder.result
        if not result or stage not in STAGE_MODULES:
            return ""
        try:
            job = folder.job
        except UnreadableFile:
            return "job.json cannot be read: how it was made is not known"
        parts = []
        if stage not in self._digests:
            self._digests[stage] = stage_digest(stage)
        if job.get("source_digest") not in (None, self._digests[stage]):
            parts.append(OTHER_CODE)
        if (recorded := job.get("data_fingerprint")) and self.fingerprint(stage, job) not in ("", recorded):
            parts.append("the data has changed")
        if stage == "pretrain" and result.get("job") and not (folder.path / "encoder.pt").is_file():
            parts.append("its encoder.pt is missing")
        for upstream in (JobFolder(folder.store / "pretrain" / job_id) for job_id in job.get("upstream", [])):
            if self.reason(upstream):
                parts.append(f"upstream {upstream.id} is stale")
            elif (used := job.get("encoder_digest")) and (now := _encoder_digest(upstream)) and used != now:
                parts.append(f"the encoder of upstream {upstream.id} has changed")
            elif not used and upstream.result.get("finished", 0) > result.get("finished", 0):
                parts.append(f"upstream {upstream.id} was run again later")
        return ", ".join(parts)

    def fingerprint(self, stage: str, job: dict[str, Any]) -> str:
        """Of the data that the job would read now; "" if it is not here."""
        key = json.dumps([stage, job.get("config", {}).get("data")], sort_keys=True)
        if key not in self._fingerprints:
            try:
                self._fingerprints[key] = current_fingerprint(parse(stage, job["config"]))
            except (ConfigError, KeyError, OSError):
                self._fingerprints[key] = ""
        return self._fingerprints[key]


def _encoder_digest(upstream: JobFolder) -> str:
    """As evaluation stages record it; "" if there is none. Clocks of two machines do not say which encoder was read."""
    try:
        return (upstream.path / "encoder.pt.sha256").read_text(errors="replace")[:16].lower()
    except OSError:
        return ""


def set_aside(folders: Iterable[JobFolder]) -> None:
    """Move the results and checkpoints of these jobs to <job folder>/earlier/<time>/: they run again from the start.

    result.json is moved first: from then on the job is not done, whatever a kill leaves behind. Nothing is deleted.
    Call with the submission lock held.
    """
    for folder in folders:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        names = (stamp, *(f"{stamp}-{number}" for number in range(2, 1000)))  # twice within a second: keep both
        target = next(path for name in names if not (path := folder.path / EARLIER / name).exists())
        target.mkdir(parents=True, mode=0o700)
        for name in MOVED:
            if (folder.path / name).exists():
                os.replace(folder.path / name, target / name)
        for name in ("job.json", "status.json"):
            if (folder.path / name).exists():
                shutil.copyfile(folder.path / name, target / name)
        folder.create()
        (folder.path / "status.json").unlink(missing_ok=True)
        folder.set_status("pending", message="not started yet: its earlier result was set aside")
