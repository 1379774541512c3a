"""Write verdicts back to MLflow as tags, and upload the rendered tables.

Only the next report reads these tags, to see what changed.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate.mirror.address import one_line
from orchestrate.mirror.tags import CLAIMS, REPORT_DIGEST, STALE, VERDICT
from reports import verdicts
from reports.records import Table, unique_jobs

if TYPE_CHECKING:
    from mlflow import MlflowClient

AT_ONCE = 1000  # tags, 3.5 ms each


def upload(client: MlflowClient | None, table: Table, files: dict[str, bytes]) -> bool:
    """Upload the files to the table's run if their bytes have changed since the last upload. Whether it did."""
    parts = [name.encode() + hashlib.sha256(files[name]).digest() for name in sorted(files)]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    if client is None or not table.run_id or digest == table.digest:
        return False
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            client.log_artifacts(table.run_id, folder)
            client.set_tag(table.run_id, REPORT_DIGEST, digest)  # last: the next report repeats a broken upload
        except (MlflowException, OSError) as error:
            print(f"warning: {table.stem} was not uploaded to MLflow: {one_line(error)}", file=sys.stderr)
            return False
    return True


def publish_verdicts(client: MlflowClient | None, shown: list[Table]) -> int:
    """Update the tags that only a report knows: verdicts, claims, and which jobs are stale. Returns how many it updated.

    At most AT_ONCE tags: an edit of the code may make every job stale. The rest follow with the next report.
    """
    if client is None:
        return 0
    tallies = [verdicts.tally([table]).items() for table in shown]
    claims = [", ".join(f"{count} {outcome}" for outcome, count in tally if count) for tally in tallies]
    tags = [(table.run_id, CLAIMS, table.published_claims, text) for table, text in zip(shown, claims, strict=True)]
    tags += [(cell.run_id, VERDICT, cell.published_verdict, cell.verdict) for table in shown for cell in table.results]
    tags += [(job.run_id, STALE, job.published_stale, job.stale) for job in unique_jobs(shown)]
    changed = [(run_id, key, value) for run_id, key, published, value in tags if run_id and published != value]
    if len(changed) > AT_ONCE:
        print(f"updated {AT_ONCE} of {len(changed)} tags; the rest follow with the next report", file=sys.stderr)
    return sum(_set_tag(client, *change) for change in changed[:AT_ONCE])


def _set_tag(client: MlflowClient, run_id: str, key: str, value: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.set_tag(run_id, key, value)
    except MlflowException as error:
        print(f"warning: the tag {key} was not written to MLflow: {one_line(error)}", file=sys.stderr)
        return False
    return True
