"""Which store a mirrored run belongs to: two stores may share one MLflow, and a job's id holds neither code nor data."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from jigclu.files import locked, read_json, write_json

NAME = ".store.json"  # {"id": ..., "path": the store's folder when it was last looked at}


def store_id(store: Path) -> str:
    """The store's id, 16 hex, written once under the store; "" if there is no such folder.

    A moved store keeps its id. A copy gets a new one: the folder that it was copied from still has the id.
    """
    if not store.is_dir():
        return ""
    here, known = os.path.realpath(store), _read(store)
    if known.get("id") and known.get("path") == here:
        return str(known["id"])
    with locked(store / ".mirror" / "identity.lock"):
        known = _read(store)
        own = str(known.get("id") or "")
        if not own or _is_copy(store, known):
            own = uuid.uuid4().hex[:16]
        write_json(store / NAME, {"id": own, "path": here})
    return own


def _read(store: Path) -> dict[str, Any]:
    try:
        return read_json(store / NAME)
    except (ValueError, TypeError):
        return {}


def _is_copy(store: Path, known: dict[str, Any]) -> bool:
    """Whether the folder that the file names is another one (not the same by another path) and has the same id."""
    original = Path(str(known.get("path", "")))
    try:
        return not original.samefile(store) and _read(original).get("id") == known["id"]
    except OSError:
        return False
