"""The store that the orchestration benchmark fills is one that the orchestrator knows as its own."""

from __future__ import annotations

from pathlib import Path

from benchmarks import orchestration


def test_the_benchmarks_store_is_the_orchestrators_own(tmp_path: Path) -> None:
    plan = orchestration.planned(1)
    orchestration.fill(tmp_path, plan, 240)
    assert len(plan.jobs) == orchestration.JOBS_A_SEED
    folders = [job.folder(tmp_path) for job in plan.jobs.values()]
    assert all(folder.done and folder.status["state"] == "done" for folder in folders)
    points = sum(len(line) - 3 for folder in folders for line in folder.metrics())  # less step, epoch, time
    assert points == 240
    row = dict(orchestration.commands(tmp_path, 1, 240, 3))["second mirror"]
    assert row.items == 7 and row.median > 0
