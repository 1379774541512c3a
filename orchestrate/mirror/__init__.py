"""MLflow as a mirror of the store: one run a job, one table a parent with one child a cell. Idempotent and rebuildable.

Everything in MLflow comes from the job folders; delete it and the next `sync` makes it again. A cursor a job, under
<store>/.mirror/<digest of the tracking URI>/, says what is mirrored, so that a pass over jobs that did not change is a
few stat calls each and does not import mlflow. Delete that folder to have every run looked for again.
"""

from orchestrate.mirror.address import cursor_folder, tracking_uri
from orchestrate.mirror.background import SideMirror
from orchestrate.mirror.store import prepare
from orchestrate.mirror.sync import MirrorError, SyncReport, sync

__all__ = ["MirrorError", "SideMirror", "SyncReport", "cursor_folder", "prepare", "sync", "tracking_uri"]
