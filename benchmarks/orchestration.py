"""How the time of plan, dry run, status, mirror and report grows with the number of jobs and of metric points.

The jobs are those of Table 8 at scale smoke, 7 per seed, written by the orchestrator's own functions and finished through the
job folder's own methods; nothing is trained. All commands but the plan run as separate processes, including Python's start.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import Group, Ratio, Row, timed
from jigclu.data.catalog import current_fingerprint
from jigclu.job_folder import JobFolder
from orchestrate.cost import measured
from orchestrate.jobs.planned import write_jobs
from orchestrate.jobs.snapshot import PROJECT as ROOT
from orchestrate.jobs.snapshot import stage_digest
from orchestrate.jobs.submissions import note_submission
from orchestrate.planning import experiments
from orchestrate.planning.plan import Job, Plan, make_plan
from orchestrate.planning.resolve import StageConfig

JOBS_A_SEED, PRETRAINS_A_SEED, METRICS_A_LINE = 7, 3, 5
# (seeds, points of the whole store): the same number of points per job in these three, so that only the number of jobs differs.
BY_JOBS = ((1, 720), (14, 10_080), (143, 102_960))
BY_POINTS = (14, 1_000_000)
FEW_JOBS, FEW_POINTS = 1_000, 500_000  # from here on, slow commands are timed once
PLAN, DRY_RUN, STATUS, FIRST_SYNC, SECOND_SYNC, REPORT = (
    "plan", "dry run", "status", "first sync", "second sync", "report"
)  # fmt: skip
COMMANDS = (PLAN, DRY_RUN, STATUS, FIRST_SYNC, SECOND_SYNC, REPORT)
PREPARE = "from pathlib import Path; import sys; from orchestrate import mirror; mirror.prepare(Path(sys.argv[1]))"


@dataclass(frozen=True)
class Store:
    """A store of finished jobs."""

    path: Path
    seeds: int
    jobs: int
    points: int


Rows = dict[str, Row]  # by command


def measure(rounds: int, full: bool) -> Group:
    """Without `full`, the thousand jobs and the million points are left out."""
    by_jobs: list[tuple[Store, Rows]] = []
    with tempfile.TemporaryDirectory(prefix="jigclu-bench-") as folder:
        path = Path(folder) / "runs"
        prepare(path)
        for seeds, points in BY_JOBS if full else BY_JOBS[:2]:
            store = build(path, seeds, points)
            by_jobs.append((store, commands(store, rounds)))
            _restore(path)
        by_points: tuple[Store, Rows] | None = None
        if full:
            store = build(path, *BY_POINTS)
            by_points = store, commands(store, rounds, by_points=True)
    sizes = " and ".join(f"{store.jobs:,} ({store.points:,})" for store, _ in by_jobs)
    setting = f"Table 8 at scale smoke, all done, sqlite; jobs (metric points): {sizes}"
    if by_points:
        setting += f" and {by_points[0].jobs:,} ({by_points[0].points:,})"
    group = Group("orchestration", setting)
    group.rows = [row for _, rows in [*by_jobs, *filter(None, [by_points])] for row in rows.values()]
    group.ratios = list(_ratios(by_jobs, by_points))
    return group


def _ratios(by_jobs: list[tuple[Store, Rows]], by_points: tuple[Store, Rows] | None) -> Iterator[Ratio]:
    """Growth of a command's time divided by the growth of its work.

    Start-up time dominates the small store, so superlinear growth shows in the step from the middle store, which therefore
    has its own ratio.
    """
    (small, fast), (large, slow) = by_jobs[0], by_jobs[-1]
    for before, quick, end in ((small, fast, slow), *([(*by_jobs[1], slow)] if len(by_jobs) > 2 else [])):
        step = f"{before.jobs:,} -> {large.jobs:,} jobs"
        for name in COMMANDS:
            grown = end[name].median / quick[name].median
            yield Ratio(f"{name}, {step}: seconds / jobs", grown / (large.jobs / before.jobs), ("<=", 1.0))
    if by_points:
        many, slow = by_points
        few, fast = next((store, rows) for store, rows in by_jobs if store.jobs == many.jobs)
        step, more = f"{few.points:,} -> {many.points:,} points", many.points / few.points
        for name in slow:
            grown = slow[name].median / fast[name].median
            yield Ratio(f"{name}, {step}: seconds / points", grown / more, ("<=", 1.0))
    for store, rows in [*by_jobs, *filter(None, [by_points])]:
        what = f"{store.jobs:,} jobs, {store.points:,} points"
        yield Ratio(f"second sync / first sync, {what}", rows[SECOND_SYNC].median / rows[FIRST_SYNC].median)


# -- the store --------------------------------------------------------------------------------------------------------
def plan_of(seeds: int) -> Plan:
    return make_plan(experiments.find(["table8"]), "smoke", "official", seeds)


def prepare(path: Path) -> None:
    """Make the empty store with its database, as the orchestrator does before any job starts."""
    path.mkdir(mode=0o700)
    _run([sys.executable, "-c", PREPARE, str(path)], path)
    _keep(path)


def build(path: Path, seeds: int, points: int) -> Store:
    """Plan every job as run.py does, then mark it done. `points`: of the whole store, spread evenly over its pretrainings."""
    plan, seconds = plan_of(seeds), time.time()
    write_jobs(plan, path)
    digests = {stage: stage_digest(stage) for stage in {job.stage for job in plan.jobs.values()}}
    lines = max(1, round(points / (PRETRAINS_A_SEED * seeds * METRICS_A_LINE)))
    for number, job in enumerate(plan.jobs.values()):
        finish(job, path, digests[job.stage], lines, seconds - number)
    return Store(path, seeds, len(plan.jobs), lines * PRETRAINS_A_SEED * seeds * METRICS_A_LINE)


@functools.cache
def fingerprint(config: StageConfig) -> str:
    """Of the job's data, so that its result does not count as stale."""
    return current_fingerprint(config)


def finish(job: Job, store: Path, digest: str, lines: int, began: float) -> None:
    """Write what the orchestrator, the worker and the stage leave in a job's folder and in the store's rates."""
    folder = job.folder(store)
    folder.update_job(source_digest=digest, sources=[digest], data_fingerprint=fingerprint(job.config))
    note_submission(folder, cluster="local", submitted=began, estimate_hours=0.008, estimate_by="the stated rate")
    details = {"seconds": 28.0 + job.seed % 5, "world": 1, "device": "CPU, 1 threads", "images": 1200}
    details["versions"] = {"python": sys.version.split()[0]}
    if job.stage == "pretrain":
        _curve(folder, lines)
        (folder.path / "encoder.pt").touch()  # without it the result is stale; nothing here reads the weights
        metrics = {"loss": 3.0, "clustering_loss": 2.0, "location_loss": 1.0, "location_accuracy": 60.0}
        metrics |= {"hours": 0.008, "peak_memory_mb": 400.0, "loader_wait": 0.02}
        details |= {"steps": lines, "precision": "bfloat16", "limiter": "compute", "memory_kind": "resident"}
    else:
        top1 = 40.0 + job.seed % 7
        metrics = {"top1": top1, "top5": top1 + 40, "best_top1": top1, "last_top1": top1 - 0.2}
        details |= {"by_lr": {"0.03": metrics}, "lr": 0.03, "val_images": 500}
    folder.write_result(metrics, **details)
    measured.note_finished(folder)


def _curve(folder: JobFolder, lines: int) -> None:
    for step in range(1, lines + 1):
        clustering, location = 2.0 + 2.0 / step, 1.0 + 1.0 / step
        folder.log(
            step,
            round(5 * step / lines, 4),
            loss=clustering + location,
            clustering_loss=clustering,
            location_loss=location,
            location_accuracy=60.0 - 50.0 / step,
            images_per_second=210.5,
        )


# -- the MLflow part of the store: reset, so that a first sync can be timed again and the next store starts without it ---
def _kept(path: Path) -> Path:
    return path.with_name(f"{path.name}.kept")


def _keep(path: Path) -> None:
    shutil.copytree(path, _kept(path))


def _forget(path: Path) -> None:
    """Reset the store to its new database, with nothing mirrored."""
    shutil.rmtree(path / "mlartifacts", ignore_errors=True)
    shutil.rmtree(path / ".mirror")
    for old in path.glob("mlflow.db*"):
        old.unlink()
    shutil.copytree(_kept(path), path, dirs_exist_ok=True)


def _restore(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(_kept(path), path)


# -- the commands -----------------------------------------------------------------------------------------------------
def commands(store: Store, rounds: int, by_points: bool = False) -> Rows:
    """A row per command. `by_points`: rows count points; the plan is left out because it does not depend on the store."""
    often = min(3, rounds)
    seldom = 1 if store.jobs >= FEW_JOBS or store.points >= FEW_POINTS else often
    python = sys.executable
    sync = [python, "-m", "orchestrate", "sync"]
    dry_run = [python, "orchestrate/run.py", "table8", "--scale", "smoke", "--seeds", str(store.seeds)]
    dry_run += ["--dry-run", "--cluster", "local"]

    def seconds(command: list[str], times: int, before: Callable[[], None] = lambda: None) -> tuple[float, ...]:
        taken = []
        for _ in range(times):
            before()
            taken.append(_run(command, store.path))
        return tuple(taken)

    found = {DRY_RUN: seconds(dry_run, often)}
    found[FIRST_SYNC] = seconds(sync, seldom, lambda: _forget(store.path))
    found[SECOND_SYNC] = seconds(sync, often)
    found[STATUS] = seconds([python, "-m", "orchestrate", "status"], often)
    with tempfile.TemporaryDirectory(prefix="jigclu-report-") as out:
        found[REPORT] = seconds([python, "-m", "reports", "--out", out], seldom)
    what = f"{store.points:,} points of {store.jobs:,} jobs" if by_points else f"{store.jobs:,} jobs"
    items, unit = (store.points, "points") if by_points else (store.jobs, "jobs")
    rows = {name: Row(f"{name}, {what}", found[name], items, unit) for name in COMMANDS if name in found}
    if by_points:
        return rows
    (plan,) = timed(f"{PLAN}, {what}", lambda: plan_of(store.seeds), often, items=items, unit=unit, warm=1)
    return {PLAN: plan, **rows}


def _run(command: list[str], store: Path) -> float:
    """Wall seconds of a command; then wait, untimed, for what it left running.

    Raises:
        RuntimeError: the command failed; with the last line of stderr.
    """
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment(store), capture_output=True, text=True)
    taken = time.perf_counter() - begun
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"{' '.join(command[1:])}: exit code {done.returncode}: {last}")
    _settle(store)
    return taken


def environment(store: Path) -> dict[str, str]:
    """A user's environment in which only the store is set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JIGCLU_", "MLFLOW_", "SLURM_"))}
    return {**kept, "JIGCLU_STORE": str(store)}


def _settle(store: Path) -> None:
    """Wait until the mirror that `status` starts in the background has ended: it would slow the next timing."""
    log = str(store / ".mirror" / "sync.log")  # its standard output
    while any(_link(process / "fd" / "1") == log for process in Path("/proc").glob("[0-9]*")):
        time.sleep(0.02)


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # another user's, or gone
        return ""
