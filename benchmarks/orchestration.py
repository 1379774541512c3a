"""What planning, looking, mirroring and reporting cost, against the number of jobs and of metric points in the store.

The store is the orchestrator's own: Table 8 at scale smoke with so many seeds (7 jobs each), every job finished.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.timing import Group, Ratio, Row, timed
from orchestrate.experiments import find
from orchestrate.plan import Plan, make_plan
from orchestrate.record import write_jobs

ROOT = Path(__file__).resolve().parent.parent
JOBS_A_SEED, FEW_POINTS = 7, 10_000
SEEDS = (1, 14, 143)  # 7, 98 and 1,001 jobs
METRICS = ("loss", "clustering_loss", "location_loss", "location_accuracy")
ONCE = ("first mirror", "second mirror", "report")  # tens of seconds each with many jobs: timed once


def measure(rounds: int, full: bool = True) -> Group:
    """`full` off: without the thousand jobs and the million points."""
    sizes = [(seeds, FEW_POINTS) for seeds in (SEEDS if full else SEEDS[:2])] + ([(14, 1_000_000)] if full else [])
    group = Group(
        "orchestration",
        "Table 8 at scale smoke, all jobs finished; MLflow in sqlite; whole commands, interpreter start and all",
    )
    median: dict[tuple[str, int, int], float] = {}
    for seeds, points in sizes:
        with store(seeds, points) as folder:
            for command, row in commands(folder, seeds, points, min(rounds, 3)):
                group.rows.append(row)
                median[command, seeds, points] = row.median
    few, many = SEEDS[0], SEEDS[2] if full else SEEDS[1]
    for command in dict.fromkeys(command for command, _, _ in median):
        growth = median[command, many, FEW_POINTS] / median[command, few, FEW_POINTS] / (many / few)
        group.ratios.append(
            Ratio(
                f"{command}: seconds a job at {many * JOBS_A_SEED} jobs / at {few * JOBS_A_SEED}", growth, ("<=", 1.0)
            )
        )
    again, first = (median[name, many, FEW_POINTS] for name in ("second mirror", "first mirror"))
    group.ratios.append(Ratio("second mirror / first mirror, seconds", again / first, ("<=", 0.1)))
    return group


def commands(folder: Path, seeds: int, points: int, rounds: int) -> Iterator[tuple[str, Row]]:
    """(command, its Row) in the order in which a user meets them: the report finds everything mirrored."""
    jobs = seeds * JOBS_A_SEED
    run = [
        str(ROOT / "orchestrate" / "run.py"),
        "table8",
        "--scale",
        "smoke",
        "--seeds",
        str(seeds),
        "--cluster",
        "local",
    ]
    report = ["-m", "reports", "--scale", "smoke", "--targets", "table8", "--out", str(folder / "report")]
    works: dict[str, Callable[[], object]] = {
        "plan": lambda: planned(seeds),
        "dry run": lambda: done(folder, *run, "--dry-run"),
        "status": lambda: done(folder, "-m", "orchestrate", "status"),
        "first mirror": lambda: done(folder, "-m", "orchestrate", "sync"),
        "second mirror": lambda: done(folder, "-m", "orchestrate", "sync"),
        "report": lambda: done(folder, *report),
    }
    for command, work in works.items():
        once = command in ONCE
        name = f"{command}, {jobs:,} jobs, {points:,} points"
        yield command, timed(name, work, 1 if once else rounds, items=jobs, unit="jobs", warm=0 if once else 1)[0]


def planned(seeds: int) -> Plan:
    return make_plan(find(["table8"]), "smoke", "official", seeds)


@contextmanager
def store(seeds: int, points: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="jigclu-bench-") as folder:
        fill(Path(folder), planned(seeds), points)
        yield Path(folder)


def fill(folder: Path, plan: Plan, points: int) -> None:
    """Every job of the plan as one that ended: its curve (the points lie in the pretrainings), its result."""
    write_jobs(plan, folder)
    pretrainings = [job for job in plan.jobs.values() if job.stage == "pretrain"]
    steps = max(1, points // (len(METRICS) * len(pretrainings)))
    for place, job in enumerate(plan.jobs.values()):
        one = job.folder(folder)
        one.set_status("running", attempt=1)
        if job.stage == "pretrain":
            begun = time.time() - steps
            lines = (
                json.dumps(
                    {"step": step, "epoch": step / 100, "time": begun + step, **dict.fromkeys(METRICS, 1 / step)}
                )
                for step in range(1, steps + 1)
            )
            one.metrics_path.write_text(
                "".join(f"{line}\n" for line in lines)
            )  # as JobFolder.log writes them, one by one
        share = place / len(plan.jobs)
        metrics = {"loss": 1 / steps} if job.stage == "pretrain" else {"top1": 20 + 10 * share, "top5": 60 + 10 * share}
        one.write_result(metrics, seconds=1.0, device="benchmark", steps=steps)


def done(folder: Path, *words: str) -> None:
    """Run this interpreter on these words with the store. Raises RuntimeError with the last line of what went wrong."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JIGCLU_", "MLFLOW_", "SLURM_"))}
    ended = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**kept, "JIGCLU_STORE": str(folder)}, capture_output=True, text=True
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(words)}: {(ended.stderr or ended.stdout).strip().splitlines()[-1:]}")
