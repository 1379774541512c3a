"""`python -m reports`: update MLflow, then build tables, figures and one page from it. Starts no job."""

from __future__ import annotations

from jigclu_cli.guard import guard_imports

if __name__ == "__main__":
    guard_imports("reports")

import argparse
import sys
from pathlib import Path

from jigclu.config import ConfigError, nearest
from jigclu.files import UnreadableFile
from jigclu_cli.arguments import Parser, file_problem, mistake, store_from_environment
from jigclu_cli.output import steady
from orchestrate.cli.select import check_store
from orchestrate.mirror.address import check_uri, is_server, tracking_uri
from orchestrate.planning import experiments, overlays
from reports.build import check_folder, report

START = "jigclu run table8 --scale smoke"


EPILOG = """examples:
  {prog}
  {prog} --scale mini --targets table8 figure7
environment: JIGCLU_STORE (job folders, default runs/), MLFLOW_TRACKING_URI"""


def parser(prog: str = "python -m reports") -> Parser:
    description = "Tables, figures and one page from MLflow. Starts no job."
    command = Parser(prog=prog, description=description, epilog=EPILOG.format(prog=prog))
    what = command.add_argument_group("what")
    what.add_argument(
        "--scale", nargs="+", action="extend", metavar="S", help="only these scales (default: all that have runs)"
    )
    what.add_argument("--protocol", metavar="P", help="only this protocol (default: all that have runs)")
    what.add_argument(
        "--targets", nargs="+", action="extend", metavar="T", help="experiments by name or topic (default: all)"
    )
    where = command.add_argument_group("where")
    where.add_argument("--out", type=Path, default=Path("reports/out"), help="folder to write (default: %(default)s)")
    store = store_from_environment()
    where.add_argument("--store", type=Path, default=store, help="the store (default: JIGCLU_STORE, else runs/)")
    command.add_version()
    return command


def check(scales: list[str], protocols: list[str]) -> None:
    """Raises ConfigError, naming the valid ones, for a scale or protocol that has no overlay."""
    for kind, names in (("scales", scales), ("protocols", protocols)):
        for name in names:
            if "," in name and {part.strip() for part in name.split(",")} <= set(overlays.overlays(kind)):
                raise ConfigError(f"unknown {kind[:-1]} {name!r}: separate {kind} by spaces")
            if name not in overlays.overlays(kind):
                raise ConfigError(f"unknown {kind[:-1]} {name!r}; {nearest(name, overlays.overlays(kind))}")


@steady
def main(arguments: list[str] | None = None, prog: str = "python -m reports") -> int:
    args = parser(prog).parse_args(arguments)
    name = prog.removeprefix("python -m ")
    try:
        experiments.find(args.targets or ["all"])
        check(args.scale or [], [args.protocol] if args.protocol else [])
        check_uri(tracking_uri(args.store))
        on_server = is_server(tracking_uri(args.store)) and args.store == parser(prog).get_default("store")
        if args.store.exists() or not on_server:  # a report of a server's runs needs no store
            check_store(args.store)
        if args.store.resolve() in (args.out.resolve(), *args.out.resolve().parents):
            raise ConfigError(f"--out {args.out} is in the store {args.store}; choose another folder")
        check_folder(args.out)
        return _run(args)
    except (ConfigError, UnreadableFile) as error:
        return mistake(name, error)
    except OSError as error:
        return mistake(name, file_problem(error))
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    from orchestrate import mirror
    from orchestrate.mirror.address import one_line

    warning, folder = "", args.store if args.store.exists() else None
    try:
        if folder:
            mirror.sync(folder)
    except mirror.MirrorError as error:
        warning = str(error)
        print(f"warning: {warning}; the report shows what MLflow has", file=sys.stderr)
    from orchestrate.mirror.sqlite import UnusableDatabase
    from orchestrate.mirror.store import connect, unusable
    from reports import tables
    from reports.page import lead

    uri = mirror.tracking_uri(args.store)
    store = None if mirror.is_own(args.store) else mirror.store_id(args.store)
    try:
        with unusable():
            client = connect(uri)
            shown = report(client, args.out, args.scale, args.protocol, args.targets, uri, store, folder, warning)
    except UnusableDatabase as error:
        raise ConfigError(f"MLflow cannot be read: {one_line(error)}") from None
    print("\n".join(map(tables.markdown, shown)) or f"No runs yet. To start: {START}\n")
    if shown:
        print(tables.count_line(shown))
    for sentence in lead.said(shown):
        print(sentence)
    print(args.out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
