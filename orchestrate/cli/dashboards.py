"""`jigclu mlflow`: serve the store's MLflow dashboards on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jigclu.config import ConfigError
from jigclu_cli.arguments import Parser, whole
from jigclu_cli.output import steady
from orchestrate import mirror
from orchestrate.cli.select import check_store
from orchestrate.mirror import address, sqlite
from orchestrate.mirror.views import VIEW

EPILOG = """example:
  jigclu mlflow
environment: JIGCLU_STORE (job folders, default runs/), MLFLOW_TRACKING_URI"""


def parser(prog: str = "jigclu mlflow") -> Parser:
    command = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    command.add_argument(
        "--port",
        type=whole(1, 65_535),
        default=5000,
        metavar="N",
        help="default: %(default)s, which the report's links expect",
    )
    command.add_version()
    return command


@steady
def main(words: list[str] | None = None, prog: str = "jigclu mlflow") -> int:
    """Becomes the server. Returns 0 if a tracking server is set already, 2 with one line if there is nothing to serve."""
    args = parser(prog).parse_args(words)
    store = Path(os.environ.get("JIGCLU_STORE") or "runs").absolute()
    uri = mirror.tracking_uri(store)
    if address.is_server(uri):
        print(f"the dashboards are on the tracking server {address.server(uri)}")
        return 0
    try:
        check_store(store)
        mirror.prepare(store)
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    page = f"http://127.0.0.1:{args.port}"
    print("\n".join([f"MLflow on {page} (Ctrl-C stops it)", *links(uri, page)]), flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(args.port)]
    command += ["--backend-store-uri", uri, "--artifacts-destination", str(store / "mlartifacts")]
    os.execv(sys.executable, command)  # signals then reach the server


def links(uri: str, page: str) -> list[str]:
    """One line for every experiment of the suite: its name and the address of its table of runs."""
    database = address.sqlite_file(uri)
    names = sqlite.experiments(database) if database else {}
    return [
        f"  {name}: {page}/#/experiments/{number}/runs?viewStateShareKey={VIEW}"
        for name, number in sorted(names.items())
        if name.startswith("jigclu-")
    ]
