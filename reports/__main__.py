"""`python -m reports`: mirror what is new, then MLflow -> tables, figures and one page. Starts no job."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jigclu.config import ConfigError, nearest
from orchestrate import experiments

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from reports.cells import Table

AT_ONCE = 1000  # tags, at 3.5 ms each
START = "python orchestrate/run.py table8 --scale mini"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reports", description="Tables, figures and one page from MLflow.")
    parser.add_argument("--scale", nargs="+", metavar="S", help="only these scales (default: every one that has runs)")
    parser.add_argument("--protocol", metavar="P", help="only this protocol (default: every one that has runs)")
    parser.add_argument("--targets", nargs="+", metavar="T", help="experiments by name or topic (default: all)")
    parser.add_argument("--out", type=Path, default=Path("reports/out"), help="folder to write (default: %(default)s)")
    store = Path(os.environ.get("JIGCLU_STORE", "runs"))
    parser.add_argument("--store", type=Path, default=store, help="folder of the job folders (default: %(default)s)")
    return parser.parse_args(arguments)


def check(scales: list[str], protocols: list[str]) -> None:
    """ConfigError, naming the valid ones, for a scale or protocol that has no overlay."""
    for kind, names in (("scales", scales), ("protocols", protocols)):
        for name in names:
            if name not in experiments.overlays(kind):
                raise ConfigError(f"unknown {kind[:-1]} {name!r}; {nearest(name, experiments.overlays(kind))}")


def report(
    client: MlflowClient | None,
    out: Path,
    scales: list[str] | None = None,
    protocol: str | None = None,
    targets: list[str] | None = None,
    uri: str = "",
) -> list[Table]:
    """Write everything under `out`, put changed tables into MLflow; the tables that were shown, in the page's order.

    `client`: None where there is no MLflow yet; `uri`: where it is, for links. `scales`: None for every one that has runs, the
    fullest first.
    """
    # Not at the top of the file: --help and a slip of the keyboard are answered at once.
    from reports import cells, page, read, render, tables

    ledger = experiments.find(targets or ["all"])
    frames = read.load(client, experiments.overlays("scales"))
    read.dress_all(client, experiments.overlays("scales"))
    shown_scales = scales or cells.fullest_first(frames) or (["paper"] if targets else [])
    shown = cells.assemble(frames, ledger, shown_scales, protocol, named=bool(targets))
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for table, files in zip(shown, render.every(shown), strict=True):
        svg = files.pop(f"{table.stem}.svg")
        for name, data in files.items():
            (out / name).write_bytes(data)
        upload(client, table, files)
        drawn.append(page.draw(client, table, svg))
    judge(client, shown)
    absent = {
        scale: [one for one in ledger if not any(t.scale == scale and t.experiment.name == one.name for t in shown)]
        for scale in shown_scales
    }
    (out / "results.json").write_text(tables.results_json(shown, page.overview(shown)), encoding="utf-8")
    (out / "index.html").write_text(page.render(client, drawn, absent, uri), encoding="utf-8")
    return shown


def upload(client: MlflowClient | None, table: Table, files: dict[str, bytes]) -> bool:
    """Put the files beside the table's run, where their bytes changed since the last time. Whether it did."""
    parts = [name.encode() + hashlib.sha256(files[name]).digest() for name in sorted(files)]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    if client is None or table.run_id is None or digest == table.digest:
        return False
    from mlflow.exceptions import MlflowException

    from orchestrate.tracking import one_line
    from reports.read import DIGEST_TAG

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            client.log_artifacts(table.run_id, folder)
            client.set_tag(table.run_id, DIGEST_TAG, digest)  # last: a broken upload is tried again
        except (MlflowException, OSError) as error:
            print(f"warning: {table.stem} did not reach MLflow: {one_line(error)}", file=sys.stderr)
            return False
    return True


def judge(client: MlflowClient | None, shown: list[Table]) -> int:
    """Write into MLflow what a report alone knows, where it changed: verdicts, claims, and whose code is not today's. How many.

    No more than AT_ONCE of them: an edit of the code may make every job stale, and the next report goes on.
    """
    if client is None:
        return 0
    from reports import verdicts
    from reports.cells import unique_jobs
    from reports.read import CLAIMS_TAG, STALE_TAG, VERDICT_TAG

    tallies = [verdicts.tally([table]).items() for table in shown]
    words = [", ".join(f"{count} {outcome}" for outcome, count in tally if count) for tally in tallies]
    tags = [(table.run_id, CLAIMS_TAG, table.claims, told) for table, told in zip(shown, words, strict=True)]
    tags += [(one.run_id, VERDICT_TAG, one.told, one.verdict) for table in shown for one in table.results]
    tags += [(job.run_id, STALE_TAG, job.told_stale, job.stale) for job in unique_jobs(shown)]
    changed = [(run, name, wanted) for run, name, told, wanted in tags if run and told != wanted]
    if len(changed) > AT_ONCE:
        print(f"MLflow hears of {AT_ONCE} of {len(changed)} changes, the next report tells the others", file=sys.stderr)
    return sum(_tell(client, *one) for one in changed[:AT_ONCE])


def _tell(client: MlflowClient, run_id: str, name: str, value: str) -> bool:
    from mlflow.exceptions import MlflowException

    from orchestrate.tracking import one_line

    try:
        client.set_tag(run_id, name, value)
    except MlflowException as error:
        print(f"warning: {name} did not reach MLflow: {one_line(error)}", file=sys.stderr)
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    try:
        experiments.find(args.targets or ["all"])
        check(args.scale or [], [args.protocol] if args.protocol else [])
        return _run(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from orchestrate import mirror
    from orchestrate.tracking import one_line

    try:
        mirror.sync(args.store)
    except mirror.MirrorError as error:
        print(f"warning: {error}; showing what MLflow has", file=sys.stderr)
    from reports import read, tables

    uri = mirror.tracking_uri(args.store)
    client = read.connect(uri)
    if client is None:
        shown = report(None, args.out, args.scale, args.protocol, args.targets, uri)
    else:
        from mlflow.exceptions import MlflowException

        try:
            shown = report(client, args.out, args.scale, args.protocol, args.targets, uri)
        except MlflowException as error:
            raise ConfigError(f"MLflow cannot be read: {one_line(error)}") from None
    print("\n".join(map(tables.markdown, shown)) or f"No runs yet. To start: {START}\n")
    print(args.out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
