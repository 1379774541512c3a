"""MLflow as a mirror of the store: a run per job, a parent run per table with a child run per cell.

Everything in MLflow comes from the job folders; if it is deleted, the next `sync` rebuilds it. A cursor per job, under
<store>/.mirror/<digest of the tracking URI>/, records what is mirrored, so a pass over unchanged jobs costs a few stat
calls per job and does not import mlflow. If that folder is deleted, `sync` looks for every run by its tags.
"""

from orchestrate.mirror.address import cursor_folder, is_own, tracking_uri
from orchestrate.mirror.background import SideMirror
from orchestrate.mirror.identity import store_id
from orchestrate.mirror.store import prepare
from orchestrate.mirror.sync import MirrorError, SyncReport, sync

__all__ = [
    "MirrorError",
    "SideMirror",
    "SyncReport",
    "cursor_folder",
    "is_own",
    "prepare",
    "store_id",
    "sync",
    "tracking_uri",
]
