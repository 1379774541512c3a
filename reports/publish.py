"""Write verdicts back to MLflow as tags, and upload the rendered tables."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from reports.records import Table


AT_ONCE = 1000  # tags, at 3.5 ms each


def upload(client: MlflowClient | None, table: Table, files: dict[str, bytes]) -> bool:
    """Put the files beside the table's run, where their bytes changed since the last time. Whether it did."""
    parts = [name.encode() + hashlib.sha256(files[name]).digest() for name in sorted(files)]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    if client is None or table.run_id is None or digest == table.digest:
        return False
    from mlflow.exceptions import MlflowException

    from orchestrate.mirror.address import one_line
    from reports.frames import DIGEST_TAG

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            client.log_artifacts(table.run_id, folder)
            client.set_tag(table.run_id, DIGEST_TAG, digest)  # last: a broken upload is tried again
        except (MlflowException, OSError) as error:
            print(f"warning: {table.stem} did not reach MLflow: {one_line(error)}", file=sys.stderr)
            return False
    return True


def publish_verdicts(client: MlflowClient | None, shown: list[Table]) -> int:
    """Write into MLflow what a report alone knows, where it changed: verdicts, claims, and whose code is not today's. How many.

    No more than AT_ONCE of them: an edit of the code may make every job stale, and the next report goes on.
    """
    if client is None:
        return 0
    from reports import verdicts
    from reports.frames import CLAIMS_TAG, STALE_TAG, VERDICT_TAG
    from reports.records import unique_jobs

    tallies = [verdicts.tally([table]).items() for table in shown]
    words = [", ".join(f"{count} {outcome}" for outcome, count in tally if count) for tally in tallies]
    tags = [(table.run_id, CLAIMS_TAG, table.claims, told) for table, told in zip(shown, words, strict=True)]
    tags += [(one.run_id, VERDICT_TAG, one.told, one.verdict) for table in shown for one in table.results]
    tags += [(job.run_id, STALE_TAG, job.told_stale, job.stale) for job in unique_jobs(shown)]
    changed = [(run, name, wanted) for run, name, told, wanted in tags if run and told != wanted]
    if len(changed) > AT_ONCE:
        print(f"MLflow hears of {AT_ONCE} of {len(changed)} changes, the next report tells the others", file=sys.stderr)
    return sum(_tell(client, *one) for one in changed[:AT_ONCE])


def _tell(client: MlflowClient, run_id: str, name: str, value: str) -> bool:
    from mlflow.exceptions import MlflowException

    from orchestrate.mirror.address import one_line

    try:
        client.set_tag(run_id, name, value)
    except MlflowException as error:
        print(f"warning: {name} did not reach MLflow: {one_line(error)}", file=sys.stderr)
        return False
    return True
