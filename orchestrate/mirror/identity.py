"""Which store a run belongs to. Several stores may share one MLflow server, and a job's id holds neither code nor data.

<store>/store.json has the store's id, which every run carries as the tag jigclu.store. A moved store keeps its id; a
copied one gets its own, and so does one that was deleted and made again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jigclu.files import locked, read_json, write_json
from orchestrate.mirror.address import sqlite_file, tracking_uri
from orchestrate.mirror.tags import STORE

STORE_FILE = "store.json"


def store_id(store: Path) -> str:
    """12 hex, made at the first call. "" if the store has none and cannot be written."""
    path, here = store / STORE_FILE, str(store.resolve())
    values = read_json(path)
    if values.get("path") == here:
        return str(values["id"])
    try:
        with locked(store / ".mirror" / "store.lock"):
            values = read_json(path)
            if not values or _is_copy(path, values):
                for cursor in (store / ".mirror").glob("*/*.json"):  # a copy's cursors name the original's runs
                    cursor.unlink(missing_ok=True)
                values = {"id": secrets.token_hex(6)}
            write_json(path, {**values, "path": here})
    except OSError:
        pass
    return str(values.get("id", ""))


def _is_copy(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether the store that this file describes is still at its old place, and is not this one under another name."""
    original = Path(str(values.get("path", ""))) / STORE_FILE
    return read_json(original).get("id") == values.get("id") and not os.path.samefile(original, path)


def id_on_shared_server(store: Path) -> str | None:
    """The store's id if other stores may have runs at its tracking URI; None for the sqlite file inside the store."""
    database = sqlite_file(tracking_uri(store))
    own = (store / "mlflow.db").absolute()
    return None if database is not None and database.resolve() == own.resolve() else store_id(store)


def belongs(tags: Mapping[str, str], shared_id: str | None) -> bool:
    """Whether a run with these tags is one of the store's. `shared_id`: from `id_on_shared_server`."""
    return shared_id is None or tags.get(STORE) == shared_id
