"""What jobs cost: estimates that learn from the store's own jobs, graded afterwards; wall time on so many GPUs; a budget."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from helpers.orchestrator import PRETRAIN, TINY, named, prepared_store, refused, run, table8, whole_table

from orchestrate.clusters import Request
from orchestrate.cost import measured, stated
from orchestrate.cost.stated import wall_hours
from orchestrate.jobs.submissions import submission
from orchestrate.planning.experiments import find
from orchestrate.planning.plan import Job, make_plan

GPU = "NVIDIA Something"


def job_of(scale: str = "paper") -> Job:
    return next(job for job in make_plan(find(["table8"]), scale, "official").jobs.values() if job.stage == "pretrain")


def earlier(store: Path, hours: float, table: float, name: str, **more: object) -> None:
    values = {
        "job": name,
        "stage": "pretrain",
        "device": GPU,
        "kind": "GPU",
        "ranks": 4,
        "hours": hours,
        "table_hours": table,
    }
    store.mkdir(exist_ok=True)
    with open(store / measured.RATES, "a") as file:
        file.write(
            json.dumps({**values, "estimate_hours": table, "scale": "paper", "time": time.time(), **more}) + "\n"
        )


def test_before_there_are_any_jobs_the_stated_table_speaks(tmp_path: Path) -> None:
    job = job_of()
    assert measured.Measured(tmp_path).hours(job, "GPU") == (
        stated.hours(job.config, "GPU"),
        "the stated rate",
    )
    assert measured.Measured(tmp_path).graded() == ""


def test_an_estimate_is_the_tables_times_what_jobs_like_it_took(tmp_path: Path) -> None:
    """Of its stage and kind of device; the five nearest in size, by their median; each job's last line."""
    job = job_of()
    table = stated.hours(job.config, "GPU")
    for index, ratio in enumerate((2.0, 2.2, 2.4, 2.6, 100.0)):
        earlier(tmp_path, ratio * table, table, f"near{index}")
    for index in range(9):
        earlier(tmp_path, 50.0 * table / 1000, table / 1000, f"small{index}")
    earlier(tmp_path, 9 * table, table, "near0")
    earlier(tmp_path, 2.0 * table, table, "near0")  # it ran again
    earlier(tmp_path, 7.0 * table, table, "cpu", kind="CPU")
    earlier(tmp_path, 7.0 * table, table, "linear", stage="linear")
    with open(tmp_path / measured.RATES, "a") as file:
        file.write('{"job": "torn", "sta')
    hours, by = measured.Measured(tmp_path).hours(job, "GPU")
    assert hours == pytest.approx(2.4 * table) and by == f"5 earlier pretrain jobs on {GPU}"


def test_a_finished_job_is_kept_and_its_estimate_graded(template: Path) -> None:
    store, done = whole_table(template)
    assert done.returncode == 0
    lines = {values["job"]: values for values in map(json.loads, (store / measured.RATES).read_text().splitlines())}
    assert len(lines) == 7
    job = named(store, PRETRAIN)
    line = lines[job.id]
    assert (line["stage"], line["kind"], line["ranks"]) == ("pretrain", "CPU", 1)
    assert line["hours"] * 3600 >= job.result["seconds"] and line["hours"] * 3600 < job.result["seconds"] + 60
    assert line["estimate_hours"] == submission(job)["estimate_hours"] > 0
    assert measured.Measured(store).graded().startswith("7 jobs took ")
    told = run(store, [*table8(pretrain__epochs=40), "--dry-run"]).stdout
    assert "(rates: 7 jobs by earlier jobs of the store; 7 jobs took " in told, told


def test_a_later_job_is_estimated_by_the_earlier_ones(tmp_path: Path, template: Path) -> None:
    """From the same store, the next training of ten times the length is estimated at about ten times what the last one took."""
    store, _ = whole_table(template)
    (longer,) = [one for one in make_plan_of(40) if one.name == PRETRAIN]
    line = next(
        values
        for values in map(json.loads, (store / measured.RATES).read_text().splitlines())
        if values["job"] == named(store, PRETRAIN).id
    )
    hours, by = measured.Measured(store).hours(longer, "CPU")
    table = stated.hours(longer.config, "CPU")
    assert by.startswith("3 earlier pretrain jobs on ") and hours / table == pytest.approx(
        line["hours"] / line["table_hours"], rel=0.7
    )


def make_plan_of(epochs: int) -> list[Job]:
    return list(make_plan(find(["table8"]), "smoke", "official", 1, TINY | {"pretrain.epochs": epochs}).jobs.values())


@pytest.mark.parametrize(
    ("jobs", "devices", "wanted"),
    [
        ({}, 4, 0.0),
        ({"a": (4.0, 4, ())}, 4, 1.0),
        ({"a": (4.0, 4, ())}, 2, 2.0),  # as many as there are
        ({"a": (4.0, 4, ()), "b": (1.0, 1, ("a",)), "c": (1.0, 1, ("a",))}, 4, 2.0),
        ({"a": (1.0, 1, ()), "b": (1.0, 1, ()), "c": (1.0, 1, ())}, 2, 2.0),
        ({"a": (1.0, 1, ()), "b": (1.0, 1, ("a",)), "c": (2.0, 1, ())}, 2, 2.0),
        ({"b": (1.0, 1, ("done already",))}, 1, 1.0),
    ],
)  # fmt: skip
def test_wall_time_follows_the_graph(
    jobs: dict[str, tuple[float, int, tuple[str, ...]]], devices: int, wanted: float
) -> None:
    assert wall_hours(jobs, devices) == pytest.approx(wanted)


def test_the_dry_run_tells_wall_time_on_so_many_gpus(tmp_path: Path) -> None:
    def wall(gpus: int) -> str:
        told = run(
            tmp_path / "runs", ["table8", "--dry-run", "--cluster", "local", "--gpus", str(gpus)]
        ).stdout.splitlines()[-1]
        assert told.startswith(f"estimated wall time on {gpus} GPU")
        return told.split("at once: ")[1].split()[0]

    def hours(clock: str) -> float:
        return sum(float(part) / 60**index for index, part in enumerate(clock.split(":")))

    one, eight = hours(wall(1)), hours(wall(8))
    assert one / 8 < eight < one / 2.5


def test_a_budget_is_kept(tmp_path: Path, template: Path) -> None:
    store = prepared_store(tmp_path / "runs", template)
    before = sorted(store.iterdir())
    refused(store, [*table8(), "--budget", "0.001"], "are left to run, the budget is 0.001: nothing was submitted")
    assert sorted(store.iterdir()) == before
    refused(store, [*table8(), "--gpus", "0"], "--gpus 0: at least 1")
    told = run(store, [*table8(), "--budget", "0.001", "--dry-run"])
    assert told.returncode == 0 and "7 to run" in told.stdout


def test_an_estimate_goes_with_the_submission(tmp_path: Path) -> None:
    job = job_of()
    note = measured.Measured(tmp_path).note(job, Request(gpus_per_task=1))
    assert note == {"estimate_hours": stated.hours(job.config, "GPU"), "estimate_by": "the stated rate"}
