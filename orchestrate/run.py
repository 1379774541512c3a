"""Run experiments of the paper: `python orchestrate/run.py table8`. See --help, --list and --dry-run."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run as a file, from a clone that is not installed
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    from jigclu_cli.guard import guard_imports

    guard_imports("run.py")
    if not {"-h", "--help", "--version", "--list"}.intersection(sys.argv):
        from jigclu_cli.arguments import announce

        announce("planning ...")

import argparse
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.files import UnreadableFile, locked
from jigclu_cli.arguments import Parser, announce, file_problem, mistake, number, store_from_environment, whole
from jigclu_cli.output import steady
from orchestrate import clusters
from orchestrate.cli.dry_run import dry_run
from orchestrate.clusters import Cluster, Placement, place_jobs
from orchestrate.console import print_line
from orchestrate.cost.plan_cost import Cost
from orchestrate.jobs.planned import write_jobs
from orchestrate.jobs.staleness import Staleness, set_aside
from orchestrate.jobs.states import SUBMITTABLE, look
from orchestrate.planning import experiments, overlays
from orchestrate.planning.plan import Plan, make_plan
from orchestrate.planning.resolve import parse_sets

RERUN = "--rerun-stale runs them again (`jigclu why JOB` says what has changed)"
EPILOG = """examples:
  {prog} table8                          at the paper's settings; on SLURM if sbatch is found, else here
  {prog} table8 --scale mini --dry-run   what would run, what is cached, what it would cost
  {prog} m --scale smoke --set pretrain.epochs=2
environment: JIGCLU_STORE (job folders, default runs/), JIGCLU_DATA (data sets, default data/), MLFLOW_TRACKING_URI"""


MOST_SEEDS, MOST_SEED, MOST_JOBS = 1000, 1_000_000, 512


def parser(prog: str = "run.py") -> Parser:
    shown = "python orchestrate/run.py" if prog == "run.py" else prog
    command = Parser(prog=prog, description="Run experiments of the paper.", epilog=EPILOG.format(prog=shown))
    what = command.add_argument_group("what")
    what.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="by name (table8), by topic (m), or all")
    what.add_argument("--scale", default="paper", help="paper (default), small, mini or smoke")
    what.add_argument(
        "--protocol", default="official", help="official (default: the released code) or paper (the printed words)"
    )
    what.add_argument(
        "--cells", nargs="+", action="extend", default=[], metavar="KEY", help="only these cells (--dry-run names them)"
    )
    what.add_argument(
        "--seeds",
        type=whole(1, MOST_SEEDS),
        default=1,
        metavar="N",
        help=f"run every cell with N seeds: 0 ... N-1 (at most {MOST_SEEDS})",
    )
    what.add_argument(
        "--first-seed", type=whole(0, MOST_SEED), default=0, metavar="S", help="count the seeds from S instead of 0"
    )
    what.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="STAGE.KEY=VALUE", help="override config values"
    )
    where = command.add_argument_group("where")
    where.add_argument("--cluster", help="local, slurm, or a YAML file; default: slurm if sbatch is found, else local")
    where.add_argument(
        "--jobs", type=whole(1, MOST_JOBS), default=1, metavar="N", help="locally, without GPUs: jobs at the same time"
    )
    follow = where.add_mutually_exclusive_group()
    wait = "follow the jobs to the end (default: locally yes, on SLURM no)"
    follow.add_argument("--wait", action="store_const", const=True, help=wait)
    follow.add_argument("--no-wait", action="store_const", const=False, dest="wait", help="start the jobs and return")
    cost = command.add_argument_group("how much")
    cost.add_argument(
        "--budget",
        type=number(0),
        metavar="GPU_HOURS",
        help="submit nothing if the jobs left to run are estimated at more than this",
    )
    cost.add_argument("--gpus", type=whole(1, 100_000), metavar="N", help="with --dry-run: the wall time on N GPUs")
    again = command.add_argument_group("again")
    again.add_argument(
        "--rerun-stale",
        action="store_true",
        help="also run jobs again whose code or data has changed since; their earlier results are kept aside",
    )
    look_only = command.add_argument_group("look")
    look_only.add_argument(
        "--dry-run", action="store_true", help="print the graph, what is cached and the cost; start nothing"
    )
    look_only.add_argument("--list", action="store_true", help="list the experiments")
    command.add_version()
    return command


@steady
def main(words: list[str] | None = None, prog: str = "run.py") -> int:
    """Exit code: 0 done or submitted, 1 a job failed, 2 a user's mistake (one line explains it), 130 interrupted."""
    args = parser(prog).parse_args(words)
    try:
        return _main(args, words if words is not None else sys.argv[1:])
    except (ConfigError, UnreadableFile) as error:
        return mistake(prog, error)
    except OSError as error:
        return mistake(prog, file_problem(error))
    except KeyboardInterrupt:
        print(f"{prog}: stopped; the same command resumes", file=sys.stderr)
        return 130


@dataclass(frozen=True)
class Run:
    """A command's plan, with everything about its jobs that is looked up once."""

    plan: Plan
    store: Path
    cluster: Cluster
    placements: dict[str, Placement]
    states: dict[str, str]
    cost: Cost
    stale: list[str]  # ids of finished jobs whose code or data has changed

    @property
    def left(self) -> list[Placement]:
        """The jobs that are not done."""
        return [self.placements[job_id] for job_id in self.plan.jobs if self.states[job_id] != "done"]


def _main(args: argparse.Namespace, words: list[str]) -> int:
    check_flags(args)
    if args.list:
        return _list()
    run = prepare(args)
    if args.dry_run:
        return dry_run(run.plan, run.states, set(run.stale), run.cost, args)
    if not run.left:
        return _all_cached(run)
    announce("checking the data and the store ...")
    check_everything(run, args.budget)
    if not run.left:  # what was left needs Detectron2
        return _all_cached(run)
    if args.rerun_stale:
        with locked(run.store / ".submit.lock"):
            set_aside(run.placements[job_id].folder for job_id in again(run))
    elif stale := len(run.stale):
        print_line(f"{stale} finished job{'s are' if stale > 1 else ' is'} stale: {RERUN}")
    write_jobs(run.plan, run.store)
    return dispatch(run, args, words)


def check_flags(args: argparse.Namespace) -> None:
    """Raises ConfigError for a missing experiment and for options that have no meaning together."""
    if args.list:
        usual = parser().parse_args(["--list"])
        if others := [name for name, value in vars(args).items() if value != getattr(usual, name)]:
            first = args.experiments[0] if others[0] == "experiments" else "--" + others[0].replace("_", "-")
            raise ConfigError(f"--list lists all experiments and takes nothing else; leave out {first}, or --list")
        return
    if not args.experiments:
        names = [*experiments.load_all(), "all"]
        for words, what in ((args.cells, "cell"), (args.set, "setting")):
            if word := next((word for word in words if word in names), ""):
                raise ConfigError(
                    f"which experiment? {word!r} was read as a {what}; write experiments before the options"
                )
        raise ConfigError(f"which experiment? valid: {', '.join(names)} (see --list)")
    if args.gpus and not args.dry_run:
        raise ConfigError("--gpus is a number for the estimate of --dry-run; add --dry-run, or leave it out")


def prepare(args: argparse.Namespace) -> Run:
    """Plan the command's jobs and look up their resources, states and costs. Writes nothing."""
    found = experiments.find(args.experiments)
    settings = parse_sets(args.set)
    plan = make_plan(found, args.scale, args.protocol, args.seeds, settings, args.cells, args.first_seed)
    if not plan.jobs:
        raise ConfigError(f"nothing to run for {', '.join(args.experiments)}: the paper cites all of these cells")
    cluster = clusters.load(args.cluster)
    if args.jobs > 1 and (cluster.kind == "slurm" or clusters.visible_gpus()):
        reason = "SLURM decides" if cluster.kind == "slurm" else "each GPU runs one job"
        print_line(f"--jobs {args.jobs} has no effect: {reason}")
    store = store_from_environment().absolute()
    placements = place_jobs(plan.jobs.values(), store, cluster)
    states = _states(placements, store)
    staleness = Staleness()
    stale = [job_id for job_id in plan.jobs if staleness.reason(placements[job_id].folder)]
    if args.rerun_stale:
        states |= dict.fromkeys(stale, "stale")
    return Run(
        plan, store, cluster, placements, states, Cost(plan, store, states, cluster, placements, args.jobs), stale
    )


def check_everything(run: Run, budget: float | None) -> None:
    """Raises ConfigError for whatever would stop the jobs later. May leave the jobs of Detectron2 out of the plan."""
    from orchestrate.preflight import preflight, without_detectron2

    clusters.require_sbatch(run.cluster)
    without_detectron2(run.plan, run.states)
    run.cost.check_budget(budget)
    preflight(run.left, run.store, run.cluster)


def again(run: Run) -> list[str]:
    """Ids of the stale jobs, and of jobs that are half done with the encoder of one: from another they cannot resume."""
    stale = [job_id for job_id in run.stale if job_id in run.plan.jobs]
    half_done = [
        job.id
        for job in run.plan.jobs.values()
        if run.states[job.id] in SUBMITTABLE
        and not set(stale).isdisjoint(job.upstream)
        and any((run.placements[job.id].folder.path / "checkpoint").glob("*"))
    ]
    return stale + half_done


def dispatch(run: Run, args: argparse.Namespace, words: list[str]) -> int:
    """Submit the jobs to SLURM, or run them here; returns the exit code."""
    if run.cluster.kind == "slurm":
        from orchestrate.cli import follow
        from orchestrate.slurm import submit

        submit.submit(run.plan, run.store, run.cluster, run.placements)
        try:
            return (
                follow.follow([run.placements[job_id].folder for job_id in run.plan.jobs], run.store)
                if args.wait
                else 0
            )
        except KeyboardInterrupt:
            print_line("no longer following; the jobs continue on SLURM (`jigclu status`, `jigclu cancel`)")
            return 130
    if args.wait is False:
        return _detach(words, run.store)
    from orchestrate.local import LocalScheduler

    return LocalScheduler(run.plan, run.store, args.jobs).run()


def _states(placements: dict[str, Placement], store: Path) -> dict[str, str]:
    try:
        states = look(placement.folder for placement in placements.values())
        return {job_id: state.name for job_id, state in states.items()}
    except OSError as error:  # a file with the store's name, another user's folder
        raise ConfigError(
            f"the store {store} cannot be read ({error.strerror}); set JIGCLU_STORE to a folder that can"
        ) from None


def _list() -> int:
    for name, experiment in experiments.load_all().items():
        head = f"{name:10s} {experiment.topic:14s} {len(experiment.cells):3d} cells"
        print_line(f"{head}  {experiment.title}  ({experiment.source})")
    scales, protocols = (", ".join(overlays.overlays(kind)) for kind in ("scales", "protocols"))
    print_line(f"scales: {scales}   protocols: {protocols}")
    return 0


def _all_cached(run: Run) -> int:
    """Nothing to start: record that these experiments use the jobs, and bring MLflow up to date."""
    from orchestrate import mirror

    plan, store = run.plan, run.store
    write_jobs(plan, store)
    try:
        mirror.sync(store, wait_for_lock=False)
    except mirror.MirrorError as error:
        print_line(f"warning: {error}")
    count = "the job is" if len(plan.jobs) == 1 else f"all {len(plan.jobs)} jobs are"
    print_line(f"{count} done already; `make report` compares the results with the paper")
    if run.stale:
        print_line(f"stale: {len(run.stale)} of them, because the code or the data has changed; {RERUN}")
    return 0


def _detach(words: list[str], store: Path) -> int:
    """The same command with --wait, in its own session, so that it continues when this terminal closes."""
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
