"""Jobs that were sent: look at them, end them, send them again. `python -m orchestrate VERB --help` tells more."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from jigclu.config import ConfigError

EPILOG = """EXPERIMENT is a name or a topic (table8, m); JOB a job's id, its beginning, or its SLURM id.
environment: JIGCLU_STORE (job folders, default runs/), MLFLOW_TRACKING_URI"""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m orchestrate",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = command.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return subcommands.add_parser(name, help=text, description=text, allow_abbrev=False)

    def some(of: argparse.ArgumentParser) -> None:
        of.add_argument("words", nargs="*", metavar="EXPERIMENT|JOB", help="only these")

    status = verb("status", "how the jobs are: status.json, squeue and sacct in one state each")
    some(status)
    status.add_argument("--all", action="store_true", help="finished jobs one by one, too")
    verb("why", "everything that is known of one job, and what its state is judged by").add_argument(
        "job", metavar="JOB"
    )
    logs = verb("logs", "print a job's logs, the newest last")
    logs.add_argument("job", metavar="JOB")
    logs.add_argument("-f", "--follow", action="store_true", help="the newest one, as it grows")
    cancel = verb("cancel", "end jobs that wait or run, and what waits for them")
    some(cancel)
    cancel.add_argument("--yes", action="store_true", help="without asking, where another experiment needs one too")
    retry = verb("retry", "send again what failed, was cancelled or lost, and what hangs on it")
    some(retry)
    retry.add_argument("--cluster", help="local, slurm, or a YAML file (default: where the jobs were sent before)")
    retry.add_argument("--jobs", type=int, default=1, metavar="N", help="locally, without GPUs: so many jobs at once")
    sync = verb("sync", "bring MLflow up to date from the job folders")
    sync.add_argument("--quiet", action="store_true", help="nothing where another is at it, or all is well")
    verb("clean", "list what nothing in the store needs").add_argument(
        "--yes", action="store_true", help="and remove it"
    )
    return command


def main(words: list[str] | None = None) -> int:
    """Exit code: 0; 1 if something is left to do (a job failed, MLflow is behind); 2 for a user's mistake."""
    args = parser().parse_args(words)
    store = Path(os.environ.get("JIGCLU_STORE", "runs")).absolute()
    try:
        if not store.is_dir():
            raise ConfigError(f"there is no store at {store}; run an experiment first, or set JIGCLU_STORE")
        return _run_verb(args, store)
    except ConfigError as error:
        print(f"orchestrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run_verb(args: argparse.Namespace, store: Path) -> int:
    from orchestrate.cli import cancel, clean, logs, retry, status, why

    match args.verb:
        case "status":
            return status.status(store, args.words, args.all)
        case "why":
            return why.why(store, args.job)
        case "logs":
            return logs.logs(store, args.job, args.follow)
        case "cancel":
            return cancel.cancel(store, args.words, args.yes)
        case "retry":
            return retry.retry(store, args.words, args.cluster, args.jobs)
        case "clean":
            return clean.clean(store, args.yes)
        case _:
            return _sync(store, args.quiet)


def _sync(store: Path, quiet: bool) -> int:
    from orchestrate import mirror

    try:
        mirror.prepare(store)
        report = mirror.sync(store, wait_for_lock=not quiet)
    except mirror.MirrorError as error:
        print(f"orchestrate: {error}", file=sys.stderr)
        return 1
    if not quiet:
        uri = mirror.tracking_uri(store)
        print(f"{report.runs} runs mirrored to {uri}, {report.changed} changed, {report.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
