"""Costs: estimates that learn from the store's own jobs and are graded afterwards; wall time; a budget."""

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
from orchestrate.planning.experiments import Experiment, find, load_all
from orchestrate.planning.overlays import experiment_files
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


def cost_line(experiment: Experiment) -> str:
    """The second line of the experiment's file: the command, and the stated hours of its jobs at scale paper."""
    jobs = make_plan([experiment], "paper", "official").jobs.values()
    hours = sum(stated.hours(job.config, "GPU") for job in jobs)
    device = "A100; detection V100" if "detect" in experiment.recipe else "A100"
    command = f"jigclu run {experiment.name}"
    return f"# run: {command}   cost at scale paper: {hours:,.0f} GPU-hours (estimated, {device})"


def test_the_cost_in_an_experiments_file_is_that_of_its_plan() -> None:
    for path in experiment_files():
        assert path.read_text().splitlines()[1] == cost_line(load_all()[path.stem]), path


def test_without_earlier_jobs_an_estimate_is_the_stated_rate(tmp_path: Path) -> None:
    job = job_of()
    assert measured.Measured(tmp_path).hours(job, "GPU") == (
        stated.hours(job.config, "GPU"),
        "the stated rate",
    )
    assert measured.Measured(tmp_path).graded() == ""


def test_an_estimate_is_the_stated_hours_times_the_median_ratio_of_similar_jobs(tmp_path: Path) -> None:
    """Similar: of its stage and kind of device, the five nearest in size. Each job's last line counts."""
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


def test_a_finished_job_is_recorded_and_its_estimate_graded(template: Path) -> None:
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
    output = run(store, [*table8(pretrain__epochs=40), "--dry-run"]).stdout
    assert "(rates: 7 jobs by earlier jobs of the store; 7 jobs took " in output, output


def test_a_later_job_is_estimated_by_the_earlier_ones(tmp_path: Path, template: Path) -> None:
    """A training of ten times the length is estimated at about ten times what the last one in the store took."""
    store, _ = whole_table(template)
    (longer,) = [job for job in jobs_with_epochs(40) if job.name == PRETRAIN]
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


def jobs_with_epochs(epochs: int) -> list[Job]:
    return list(make_plan(find(["table8"]), "smoke", "official", 1, TINY | {"pretrain.epochs": epochs}).jobs.values())


@pytest.mark.parametrize(
    ("jobs", "devices", "wanted"),
    [
        ({}, 4, 0.0),
        ({"a": (4.0, 4, ())}, 4, 1.0),
        ({"a": (4.0, 4, ())}, 2, 2.0),  # no more devices than there are
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


def test_the_dry_run_prints_the_wall_time_on_a_number_of_gpus(tmp_path: Path) -> None:
    def wall(gpus: int) -> str:
        words = ["table8", "--dry-run", "--cluster", "local", "--gpus", str(gpus)]
        line = run(tmp_path / "runs", words).stdout.splitlines()[-1]
        assert line.startswith(f"estimated wall time on {gpus} GPU")
        return line.split(": ")[1].split()[0]

    def hours(clock: str) -> float:
        return sum(float(part) / 60**index for index, part in enumerate(clock.split(":")))

    one, eight = hours(wall(1)), hours(wall(8))
    assert one / 8 < eight < one / 2.5


def test_a_run_over_budget_submits_nothing(tmp_path: Path, template: Path) -> None:
    store = prepared_store(tmp_path / "runs", template)
    before = sorted(store.iterdir())
    refused(store, [*table8(), "--budget", "0.001"], "are left to run, the budget is 0.001: nothing was submitted")
    assert sorted(store.iterdir()) == before
    refused(store, [*table8(), "--gpus", "0"], "--gpus must be at least 1, not 0")
    planned = run(store, [*table8(), "--budget", "0.001", "--dry-run"])
    assert planned.returncode == 0 and "7 to run" in planned.stdout


def test_a_submission_records_its_estimate(tmp_path: Path) -> None:
    job = job_of()
    note = measured.Measured(tmp_path).note(job, Request(gpus_per_task=1))
    assert note == {"estimate_hours": stated.hours(job.config, "GPU"), "estimate_by": "the stated rate"}
