"""Submitted jobs: look at them, cancel them, retry them. `python -m orchestrate VERB --help` explains a verb."""

from __future__ import annotations

from jigclu_cli.guard import guard_imports

if __name__ == "__main__":
    guard_imports("orchestrate")

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.files import UnreadableFile
from jigclu_cli.arguments import Parser, file_problem, mistake, store_from_environment, whole
from jigclu_cli.output import steady

EPILOG = """EXPERIMENT is a name or a topic (table8, m); JOB is a job's id, the beginning of one, or its SLURM id.
examples:
  {prog} status table8
  {prog} why 3f9c
  {prog} logs 3f9c --follow
  {prog} retry table8
environment: JIGCLU_STORE (job folders, default runs/), MLFLOW_TRACKING_URI"""


def parser(prog: str = "python -m orchestrate") -> Parser:
    epilog = EPILOG.format(prog=prog)
    command = Parser(prog=prog, description="Submitted jobs: look at them, cancel them, retry them.", epilog=epilog)
    command.add_version()
    subcommands = command.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, example: str) -> Parser:
        return subcommands.add_parser(name, help=text, description=text, epilog=f"example:\n  {prog} {name}{example}")

    def add_selection(verb: Parser) -> None:
        verb.add_argument("words", nargs="*", metavar="EXPERIMENT|JOB", help="only these")

    status = verb("status", "the state of every job, from status.json, squeue and sacct", " table8")
    add_selection(status)
    status.add_argument("--all", action="store_true", help="list finished jobs one by one, too")
    why = verb("why", "everything about one job, and the evidence for its state", " 3f9c")
    why.add_argument("job", metavar="JOB")
    logs = verb("logs", "print a job's logs, the newest last", " 3f9c --follow")
    logs.add_argument("job", metavar="JOB")
    logs.add_argument("-f", "--follow", action="store_true", help="follow the newest log as it grows")
    cancel = verb("cancel", "cancel waiting and running jobs, and their dependents", " table8")
    add_selection(cancel)
    cancel.add_argument("--yes", action="store_true", help="do not ask if another experiment needs one of the jobs")
    retry = verb(
        "retry", "resubmit jobs that failed, were cancelled, interrupted or lost, and their dependents", " table8"
    )
    add_selection(retry)
    retry.add_argument("--cluster", help="local, slurm, or a YAML file (default: the cluster of the last submission)")
    retry.add_argument(
        "--jobs", type=whole(1, 512), default=1, metavar="N", help="locally, without GPUs: jobs at the same time"
    )
    sync = verb("sync", "update MLflow from the job folders", "")
    sync.add_argument("--quiet", action="store_true", help="print errors only, and do not wait for another sync")
    clean = verb("clean", "list the files of the store that nothing references", " --yes")
    clean.add_argument("--yes", action="store_true", help="remove them")
    return command


@steady
def main(words: list[str] | None = None, prog: str = "python -m orchestrate") -> int:
    """Exit code: 0; 1 if something is left to do (a job failed, MLflow is behind); 2 for a user's mistake."""
    args = parser(prog).parse_args(words)
    name = f"{prog.removeprefix('python -m ')} {args.verb}"
    store = store_from_environment().absolute()
    try:
        from orchestrate.cli.select import check_store

        check_store(store)
        return _run_verb(args, store, name)
    except (ConfigError, UnreadableFile) as error:
        return mistake(name, error)
    except OSError as error:
        return mistake(name, file_problem(error))
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _run_verb(args: argparse.Namespace, store: Path, name: str) -> int:
    from orchestrate.cli import cancel, clean, logs, retry, status, why

    verbs: dict[str, Callable[[], int]] = {  # no `match`: a Python that is too old must be able to read this file
        "status": lambda: status.status(store, args.words, args.all),
        "why": lambda: why.why(store, args.job),
        "logs": lambda: logs.logs(store, args.job, args.follow),
        "cancel": lambda: cancel.cancel(store, args.words, args.yes),
        "retry": lambda: retry.retry(store, args.words, args.cluster, args.jobs),
        "clean": lambda: clean.clean(store, args.yes),
        "sync": lambda: _sync(store, args.quiet, name),
    }
    return verbs[args.verb]()


def _sync(store: Path, quiet: bool, name: str) -> int:
    from orchestrate import mirror

    try:
        mirror.prepare(store)
        report = mirror.sync(store, wait_for_lock=not quiet)
    except mirror.MirrorError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    if not quiet:
        uri = mirror.tracking_uri(store)
        print(f"{report.runs} runs mirrored to {uri}, {report.changed} changed, {report.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
