"""`jigclu mlflow`: serve the store's MLflow dashboards on this machine."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from pathlib import Path

from jigclu_cli.arguments import Parser

EPILOG = """example:
  jigclu mlflow
environment: JIGCLU_STORE (job folders, default runs/)"""


def parser(prog: str = "jigclu mlflow") -> Parser:
    command = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    command.add_argument("--port", type=int, default=5000, help="default: %(default)s, which the report's links expect")
    command.add_version()
    return command


def main(words: list[str] | None = None, prog: str = "jigclu mlflow") -> int:
    """Becomes the server; 2 with one line if there is nothing to serve."""
    args = parser(prog).parse_args(words)
    store = Path(os.environ.get("JIGCLU_STORE") or "runs").absolute()
    if not store.is_dir():
        print(f"{prog}: there is no store at {store}; run an experiment first, or set JIGCLU_STORE", file=sys.stderr)
        return 2
    address = f"http://127.0.0.1:{args.port}"
    print("\n".join([f"MLflow on {address} (Ctrl-C stops it)", *links(store, address)]), flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(args.port)]
    command += ["--backend-store-uri", f"sqlite:///{store}/mlflow.db"]
    command += ["--artifacts-destination", str(store / "mlartifacts")]
    os.execv(sys.executable, command)  # signals then reach the server


def links(store: Path, address: str) -> list[str]:
    """One line for every experiment of the suite: its name and the address of its table of runs."""
    from orchestrate.mirror.views import VIEW

    database = store / "mlflow.db"
    if not database.exists():
        return []
    query = "SELECT name, experiment_id FROM experiments WHERE name LIKE 'jigclu-%' AND lifecycle_stage = 'active'"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            rows = sorted(connection.execute(query))
        except sqlite3.Error:  # not MLflow's yet
            return []
    return [f"  {name}: {address}/#/experiments/{number}/runs?viewStateShareKey={VIEW}" for name, number in rows]
