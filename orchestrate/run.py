"""Run experiments of the paper: `python orchestrate/run.py table8`. See --help, --list and --dry-run."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, from a clone that is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jigclu_cli.arguments import guard_imports

    guard_imports("run.py")

from jigclu.config import ConfigError
from jigclu_cli.arguments import Parser
from orchestrate import clusters
from orchestrate.cli.dry_run import dry_run
from orchestrate.console import print_line
from orchestrate.cost.plan_cost import Cost
from orchestrate.jobs.planned import write_jobs
from orchestrate.jobs.states import look
from orchestrate.planning import experiments, overlays
from orchestrate.planning.plan import Plan, make_plan
from orchestrate.planning.resolve import parse_sets

EPILOG = """examples:
  {prog} table8                          at the paper's settings; on SLURM if sbatch is found, else here
  {prog} table8 --scale mini --dry-run   what would run, what is cached, what it would cost
  {prog} m --scale smoke --set pretrain.epochs=2
environment: JIGCLU_STORE (job folders, default runs/), JIGCLU_DATA (data sets, default data/), MLFLOW_TRACKING_URI"""


def parser(prog: str = "run.py") -> Parser:
    shown = "python orchestrate/run.py" if prog == "run.py" else prog
    command = Parser(prog=prog, description="Run experiments of the paper.", epilog=EPILOG.format(prog=shown))
    what = command.add_argument_group("what")
    what.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="by name (table8), by topic (m), or all")
    what.add_argument("--scale", default="paper", help="paper (default), small, mini or smoke")
    what.add_argument(
        "--protocol", default="official", help="official (default: the released code) or paper (the printed words)"
    )
    what.add_argument("--cells", nargs="+", default=[], metavar="KEY", help="only these cells (--dry-run names them)")
    what.add_argument("--seeds", type=int, default=1, metavar="N", help="run every cell with seeds 0 ... N-1")
    what.add_argument(
        "--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="override a config value; may be repeated"
    )
    where = command.add_argument_group("where")
    where.add_argument("--cluster", help="local, slurm, or a YAML file; default: slurm if sbatch is found, else local")
    where.add_argument("--jobs", type=int, default=1, metavar="N", help="locally, without GPUs: jobs at the same time")
    where.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        help="follow the jobs to the end (default: locally yes, on SLURM no)",
    )
    cost = command.add_argument_group("how much")
    cost.add_argument(
        "--budget",
        type=float,
        metavar="GPU_HOURS",
        help="submit nothing if the jobs left to run are estimated at more than this",
    )
    cost.add_argument("--gpus", type=int, metavar="N", help="with --dry-run: the wall time on N GPUs")
    look_only = command.add_argument_group("look")
    look_only.add_argument(
        "--dry-run", action="store_true", help="print the graph, what is cached and the cost; start nothing"
    )
    look_only.add_argument("--list", action="store_true", help="list the experiments")
    command.add_version()
    return command


def main(words: list[str] | None = None, prog: str = "run.py") -> int:
    """Exit code: 0 done or submitted, 1 a job failed, 2 a user's mistake (one line says which), 130 interrupted."""
    args = parser(prog).parse_args(words)
    try:
        return _main(args, words if words is not None else sys.argv[1:])
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{prog}: stopped; the same command resumes", file=sys.stderr)
        return 130


def _main(args: argparse.Namespace, words: list[str]) -> int:
    if args.list:
        return _list()
    if not args.experiments:
        raise ConfigError(f"which experiment? valid: {', '.join([*experiments.load_all(), 'all'])} (--list tells more)")
    for flag in ("seeds", "jobs", "gpus"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise ConfigError(f"--{flag} {getattr(args, flag)}: at least 1")
    if args.budget is not None and args.budget < 0:
        raise ConfigError(f"--budget {args.budget:g}: GPU-hours, at least 0")
    found = experiments.find(args.experiments)
    plan = make_plan(found, args.scale, args.protocol, args.seeds, parse_sets(args.set), args.cells)
    if not plan.jobs:
        raise ConfigError(f"no cell of {', '.join(args.experiments)} is run: the paper cites them")
    cluster = clusters.load(args.cluster)
    if args.jobs > 1 and (cluster.kind == "slurm" or clusters.visible_gpus()):
        print_line(
            f"--jobs {args.jobs} has no effect: {'SLURM' if cluster.kind == 'slurm' else 'one job a GPU'} decides"
        )
    store = Path(os.environ.get("JIGCLU_STORE", "runs")).absolute()
    states = _states(plan, store)
    cost = Cost(plan, store, states, cluster)
    if args.dry_run:
        return dry_run(plan, store, states, cost, args)
    if args.gpus:
        print_line(f"--gpus {args.gpus} has no effect without --dry-run")
    if all(state == "done" for state in states.values()):
        return _all_cached(plan, store)
    clusters.needed(cluster)
    from orchestrate.preflight import preflight, without_detectron2

    without_detectron2(plan, states)
    cost.check_budget(args.budget)
    preflight([job for job in plan.jobs.values() if states[job.id] != "done"], store, cluster)
    write_jobs(plan, store)
    if cluster.kind == "slurm":
        from orchestrate.cli import follow
        from orchestrate.slurm import submit

        submit.submit(plan, store, cluster)
        try:
            return follow.follow(plan, store) if args.wait else 0
        except KeyboardInterrupt:
            print_line("\nno longer followed; the jobs go on in SLURM (python -m orchestrate status, cancel)")
            return 130
    if args.wait is False:
        return _detach(words, store)
    from orchestrate.local import LocalScheduler

    return LocalScheduler(plan, store, args.jobs).run()


def _states(plan: Plan, store: Path) -> dict[str, str]:
    try:
        return {job_id: state.name for job_id, state in look(job.folder(store) for job in plan.jobs.values()).items()}
    except OSError as error:  # a file in the way, somebody else's folder
        raise ConfigError(
            f"the store {store} cannot be read ({error.strerror}); set JIGCLU_STORE to a folder that can"
        ) from None


def _list() -> int:
    for name, experiment in experiments.load_all().items():
        print_line(
            f"{name:10s} {experiment.topic:14s} {len(experiment.cells):3d} cells  {experiment.title}  ({experiment.source})"
        )
    print_line(
        f"scales: {', '.join(overlays.overlays('scales'))}   protocols: {', '.join(overlays.overlays('protocols'))}"
    )
    return 0


def _all_cached(plan: Plan, store: Path) -> int:
    """Nothing to start: note who asks, bring MLflow up to date (free where it is), print the results."""
    from orchestrate import mirror

    write_jobs(plan, store)
    try:
        mirror.sync(store, wait_for_lock=False)
    except mirror.MirrorError as error:
        print_line(f"warning: {error}")
    print_line(f"all {len(plan.jobs)} jobs are done already; `make report` lays them beside the paper")
    return 0


def _detach(words: list[str], store: Path) -> int:
    """The same command with --wait, in a session of its own; it goes on when this terminal closes."""
    log = store / "orchestrator.log"
    with open(log, "a") as file:
        words = [word for word in words if word != "--no-wait"]
        child = subprocess.Popen(
            [sys.executable, __file__, *words, "--wait"],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    print_line(f"running in the background as process {child.pid}; its log: {log}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
