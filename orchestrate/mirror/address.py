"""The tracking store's address: its URI, the sqlite file or server behind it, and the folder of cursors."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jigclu.config import ConfigError
from orchestrate.mirror.identity import store_id

PORT = 5151  # that `jigclu mlflow` prefers; the page's links point there. 5000 is often taken (macOS uses it, too)
DATABASES = ("postgresql", "mysql", "mssql")  # that MLflow can use beside sqlite


def server(uri: str) -> str:
    """The address of MLflow's web pages, without the password that a client may need."""
    return re.sub(r"//[^@/]*@", "//", uri.rstrip("/")) if is_server(uri) else f"http://127.0.0.1:{PORT}"


def digest(value: Any) -> str:
    """16 hex of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def one_line(error: BaseException) -> str:
    """An error's first line, without the password of a database URI."""
    lines = str(error).strip().splitlines()
    return re.sub(r"//[^@/\s]*@", "//***@", lines[0] if lines else type(error).__name__)[:300]


def tracking_uri(store: Path) -> str:
    """MLFLOW_TRACKING_URI, else a sqlite file in the store."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{store.absolute()}/mlflow.db"


def is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def check_uri(uri: str) -> None:
    """Raises ConfigError, one line with the valid forms, unless it is an address of a kind that MLflow can use."""
    wrong, shown = "", one_line(ValueError(uri))
    if uri.startswith("sqlite:"):
        path = uri.removeprefix("sqlite:///").split("?")[0]
        if not uri.startswith("sqlite:///") or not path:
            wrong = "names no file"
        elif not path.startswith("/"):
            wrong = f"depends on the current folder; from here it is sqlite:///{Path(path).absolute()}"
    elif not (is_server(uri) or re.match(rf"({'|'.join(DATABASES)})(\+\w+)?://", uri) or uri.startswith("databricks")):
        wrong = "is no address of a tracking server or database"
    if any("\ud800" <= letter <= "\udfff" for letter in uri):
        wrong = "is not UTF-8, as MLflow needs it (so the path of the store must be)"
    if wrong:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={shown} {wrong}: set it to http://HOST:PORT or sqlite:////FOLDER/FILE.db, or unset it to "
            "track in the store's own file"
        )


def is_own(store: Path) -> bool:
    """Whether tracking is the sqlite file inside the store: no other store writes there."""
    database = sqlite_file(tracking_uri(store))
    return database is not None and database == (store / "mlflow.db").absolute()


def cursor_folder(store: Path) -> Path:
    """The folder that records what was mirrored to the current tracking URI: <store>/.mirror/<digest>/.

    If other stores may use the same MLflow, the digest holds the store's id: a copied store must not use the copied
    records, which name the original's runs.
    """
    uri = tracking_uri(store)
    return store / ".mirror" / digest(uri if is_own(store) else [uri, store_id(store)])


def sqlite_file(uri: str) -> Path | None:
    """The file that a sqlite tracking URI names; None for another kind of store."""
    if not uri.startswith("sqlite:///"):
        return None
    # SQLAlchemy decodes %20 too. MLflow itself does not, and creates a second folder: preflight refuses such stores.
    return Path(unquote(uri.removeprefix("sqlite:///").split("?")[0])).absolute()


def has_tables(database: Path) -> bool:
    return database.exists() and database.stat().st_size > 0
