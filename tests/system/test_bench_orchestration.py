"""The orchestrator reads the store that the orchestration benchmark fills like one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import orchestration
from orchestrate.cost.measured import Measured


def test_the_benchmarks_store_is_a_real_store(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    orchestration.prepare(path)
    store = orchestration.build(path, 1, 300)
    assert (store.jobs, store.points) == (orchestration.JOBS_A_SEED, 300)
    folders = [job.folder(path) for job in orchestration.plan_of(1).jobs.values()]
    assert all(folder.done and folder.status["state"] == "done" for folder in folders)
    points = sum(len(line) - 3 for folder in folders for line in folder.metrics())  # without step, epoch, time
    assert points == 300 and len(Measured(path).lines) == store.jobs
    command = [sys.executable, "-m", "orchestrate", "status"]
    done = subprocess.run(
        command, cwd=orchestration.ROOT, env=orchestration.environment(path), capture_output=True, text=True
    )
    assert done.returncode == 0 and "7 done" in done.stdout, done.stdout + done.stderr
    orchestration._settle(path)
