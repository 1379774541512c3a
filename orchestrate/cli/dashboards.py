"""`jigclu mlflow`: serve the store's MLflow dashboards on this machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque

from jigclu.config import ConfigError
from jigclu_cli.arguments import Parser, file_problem, mistake, store_from_environment, whole
from jigclu_cli.output import steady
from orchestrate import mirror
from orchestrate.cli.select import check_store
from orchestrate.mirror import address, sqlite
from orchestrate.mirror.views import view_link

HOST = "127.0.0.1"
EPILOG = """example:
  jigclu mlflow
environment: JIGCLU_STORE (job folders, default runs/), MLFLOW_TRACKING_URI"""


def parser(prog: str = "jigclu mlflow") -> Parser:
    command = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    command.add_argument(
        "--port",
        type=whole(1, 65535),
        help=f"default: {address.PORT}, which the report's links use; if taken, a free one",
    )
    command.add_version()
    return command


@steady
def main(words: list[str] | None = None, prog: str = "jigclu mlflow") -> int:
    """Runs the server. Returns 0 if a tracking server is set already, 2 with one line if there is nothing to serve."""
    args = parser(prog).parse_args(words)
    store = store_from_environment().absolute()
    uri = mirror.tracking_uri(store)
    if address.is_server(uri):
        print(f"the dashboards are on the tracking server {address.server(uri)}")
        return 0
    try:
        check_store(store)
        port = free_port(args.port)
        mirror.prepare(store)
    except ConfigError as error:
        return mistake(prog, error)
    except OSError as error:
        return mistake(prog, file_problem(error))
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", uri, "--artifacts-destination", str(store / "mlartifacts")]
    return serve(command, f"http://{HOST}:{port}", uri, prog)


def free_port(wanted: int | None) -> int:
    """The wanted port; without one the preferred port, or any free one. ConfigError if the wanted one cannot be used."""
    for port in [wanted] if wanted is not None else [address.PORT, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
            except (OSError, OverflowError) as error:
                problem = getattr(error, "strerror", None) or "a port is a number from 1 to 65535"
    raise ConfigError(f"port {wanted} cannot be used ({problem}); choose another with --port, or leave --port out")


def serve(command: list[str], page: str, uri: str, prog: str) -> int:
    """Run the server until it ends; print the links when it answers. Returns its exit code, 0 after Ctrl-C or SIGTERM."""
    print("starting MLflow ...", flush=True)
    server, stopping = (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"),
        [],
    )
    errors: deque[str] = deque(maxlen=20)
    reader = threading.Thread(target=lambda: errors.extend(server.stderr or ()), daemon=True)
    reader.start()

    def stop(*_: object) -> None:
        stopping.append(True)
        server.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    while server.poll() is None and not stopping and not answers(page):
        time.sleep(0.2)
    if server.poll() is None and not stopping:
        print("\n".join([f"MLflow on {page} (Ctrl-C stops it)", *links(uri, page)]), flush=True)
    code = server.wait()
    reader.join(1)
    if code and not stopping:
        last = next((line.strip() for line in reversed(errors) if line.strip()), f"exit code {code}")
        print(f"{prog}: MLflow's server ended: {last}", file=sys.stderr)
    return 0 if stopping else code


def answers(page: str) -> bool:
    """Whether MLflow's server is up."""
    try:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # a proxy does not reach this machine's loopback
        with opener.open(f"{page}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def links(uri: str, page: str) -> list[str]:
    """One line for every experiment of the suite: its name and the address of its table of runs."""
    database = address.sqlite_file(uri)
    names = sqlite.experiments(database) if database else {}
    return [
        f"  {'tables' if name.endswith('-tables') else 'jobs'} of {name.removeprefix('jigclu-').removesuffix('-tables')}: "
        f"{view_link(page, number)}"
        for name, number in sorted(names.items())
        if name.startswith("jigclu-")
    ]
