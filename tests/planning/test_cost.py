"""Costs: estimates that learn from the store's own jobs and are graded afterwards; wall time; a budget."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import PRETRAIN, ROOT, TINY, borrow, named, prepared_store, refused, run, table8, whole_table

from jigclu.config.machine import usable_cores
from orchestrate.clusters import Request, load, place_jobs
from orchestrate.cost import measured, stated
from orchestrate.cost.plan_cost import Cost
from orchestrate.cost.stated import wall_hours
from orchestrate.jobs.submissions import submission
from orchestrate.planning.experiments import Experiment, find, load_all
from orchestrate.planning.overlays import experiment_files
from orchestrate.planning.plan import Job, make_plan

GPU = "NVIDIA Something"


def job_of(scale: str = "paper") -> Job:
    return next(job for job in make_plan(find(["table8"]), scale, "official").jobs.values() if job.stage == "pretrain")


START = stated.START_HOURS["GPU"]


def earlier(store: Path, work: float, stated_work: float, name: str, **more: object) -> None:
    """A line of rates.jsonl: a job whose work took `work` hours and was stated as `stated_work`."""
    values = {
        "job": name, "stage": "pretrain", "device": GPU, "kind": "GPU", "ranks": 4, "hours": work + START,
        "start_hours": START, "work_hours": work, "stated_hours": stated_work, "stated_rate": stated.rate("pretrain", "GPU"),
        "waited": 0.0, "site": "slurm",
    }  # fmt: skip
    store.mkdir(exist_ok=True)
    with open(store / measured.RATES, "a") as file:
        file.write(json.dumps({**values, "estimate_hours": work, "scale": "paper", "time": time.time(), **more}) + "\n")


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


def test_the_times_in_the_documents_are_those_of_the_dry_run(tmp_path: Path) -> None:
    """README and the scale's file give the shortest and the longest table at scale mini, without earlier jobs."""

    def minutes(names: list[str], scale: str) -> float:
        plan = make_plan(find(names), scale, "official")
        cluster = load("local")
        places = place_jobs(plan.jobs.values(), tmp_path, cluster)
        return 60 * Cost(plan, tmp_path, dict.fromkeys(plan.jobs, "new"), cluster, places).wall(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        tables = [minutes([name], "mini") for name in load_all()]
        low, high = round(min(tables), -1), round(max(tables), -1)
        assert f"2 CPU cores, {low:.0f} to {high:.0f} min a table" in (ROOT / "README.md").read_text()
        assert (
            f"takes {low:.0f} to {high:.0f} minutes on 2 CPU cores"
            in (ROOT / "experiments/scales/mini.yaml").read_text()
        )
        assert 65 < minutes(["all"], "smoke") < 90  # "75 minutes", smoke.yaml and README
        assert 5 < minutes(["table8"], "smoke") < 7  # "about 6 minutes", README


def test_without_earlier_jobs_an_estimate_is_the_stated_rate(tmp_path: Path) -> None:
    job = job_of()
    assert measured.Measured(tmp_path).hours(job, "GPU") == (
        stated.hours(job.config, "GPU"),
        "the stated rate",
    )
    assert measured.Measured(tmp_path).graded() == ""


def test_an_estimate_is_the_start_and_the_stated_work_times_the_median_ratio_of_similar_jobs(tmp_path: Path) -> None:
    """Similar: of its stage and kind of device, the five nearest in size. Each job's last line counts."""
    job = job_of()
    work = stated.hours(job.config, "GPU") - START
    for index, ratio in enumerate((2.0, 2.2, 2.4, 2.6, 100.0)):
        earlier(tmp_path, ratio * work, work, f"near{index}")
    for index in range(9):
        earlier(tmp_path, 50.0 * work / 10, work / 10, f"small{index}")
    earlier(tmp_path, 9 * work, work, "near0")
    earlier(tmp_path, 2.0 * work, work, "near0")  # it ran again
    earlier(tmp_path, 7.0 * work, work, "cpu", kind="CPU")
    earlier(tmp_path, 7.0 * work, work, "linear", stage="linear")
    with open(tmp_path / measured.RATES, "a") as file:
        file.write('{"job": "torn", "sta')
    hours, by = measured.Measured(tmp_path).hours(job, "GPU")
    assert hours == pytest.approx(START + 2.4 * work) and by == f"5 earlier pretrain jobs on {GPU}"


def test_a_job_of_seconds_says_nothing_about_one_of_hours_but_its_start_does(tmp_path: Path) -> None:
    job = job_of()
    work = stated.hours(job.config, "GPU") - START
    for index in range(3):
        earlier(tmp_path, 9 * work / 1000, work / 1000, f"small{index}", start_hours=10 * START)
    assert measured.Measured(tmp_path).hours(job, "GPU") == (pytest.approx(10 * START + work), "the stated rate")


def test_a_job_that_waited_for_cores_is_no_basis_for_an_estimate(tmp_path: Path) -> None:
    """Smoke jobs beside other programs took nine times as long; that made a later plan's estimate ninefold, too."""
    job = job_of()
    work = stated.hours(job.config, "GPU") - START
    for index in range(7):
        earlier(tmp_path, 9 * work, work, f"slow{index}", start_hours=9 * START, waited=0.7)
    rates = measured.Measured(tmp_path)
    assert rates.hours(job, "GPU") == (pytest.approx(START + work), "the stated rate") and rates.left_out == 7
    earlier(tmp_path, 1.5 * work, work, "free", waited=0.02)
    assert measured.Measured(tmp_path).hours(job, "GPU")[0] == pytest.approx(0.98 * (START + 1.5 * work))


def test_earlier_jobs_stay_comparable_after_the_stated_rate_was_corrected(tmp_path: Path) -> None:
    job = job_of()
    work = stated.hours(job.config, "GPU") - START
    earlier(tmp_path, 2 * work, work / 3, "old", stated_rate=3 * stated.rate("pretrain", "GPU"))
    assert measured.Measured(tmp_path).hours(job, "GPU")[0] == pytest.approx(START + 2 * work)


def test_lines_of_older_versions_are_read(tmp_path: Path) -> None:
    old = {"job": "a", "stage": "pretrain", "device": GPU, "kind": "GPU", "ranks": 4, "hours": 3.0, "table_hours": 1.0}
    (tmp_path / measured.RATES).write_text(json.dumps({**old, "estimate_hours": None, "time": 1.0}) + "\n")
    (line,) = measured.Measured(tmp_path).lines
    assert (line.work, line.stated) == (pytest.approx(3 - 6 / 3600), pytest.approx(1 - 6 / 3600))


def as_on_an_idle_machine(whole: Path, store: Path) -> dict[str, dict[str, Any]]:
    """Copy the jobs and the rates, as if no other program had used the cores; returns the rates by job id."""
    borrow(whole, store, but=[])
    lines = [json.loads(line) | {"waited": 0.0} for line in (whole / measured.RATES).read_text().splitlines()]
    (store / measured.RATES).write_text("".join(json.dumps(values) + "\n" for values in lines))
    return {values["job"]: values for values in lines}


def test_a_finished_job_is_recorded_and_its_estimate_graded(tmp_path: Path, template: Path) -> None:
    whole, done = whole_table(template)
    assert done.returncode == 0
    store = prepared_store(tmp_path / "runs", template)
    lines = as_on_an_idle_machine(whole, store)
    assert len(lines) == 7
    job = named(store, PRETRAIN)
    line = lines[job.id]
    assert (line["stage"], line["kind"], line["ranks"]) == ("pretrain", "CPU", 1)
    attempt = job.status["attempts"][0]
    assert line["hours"] * 3600 == pytest.approx(attempt["ended"] - attempt["began"])
    assert line["start_hours"] * 3600 > 0.5 and line["work_hours"] * 3600 == pytest.approx(job.result["seconds"])
    assert line["estimate_hours"] == submission(job)["estimate_hours"] > 0
    assert measured.Measured(store).graded().startswith("7 jobs took ")
    output = run(store, [*table8(pretrain__epochs=40), "--dry-run"]).stdout
    assert "3 jobs estimated from 3 earlier pretrain jobs" in output, output
    assert "other programs" not in output
    assert "until now 7 jobs took " in output and max(map(len, output.splitlines()[-6:])) <= 80, output


def test_a_later_job_is_estimated_by_the_earlier_ones(tmp_path: Path, template: Path) -> None:
    """A training of ten times the length is estimated at as many times its stated work as those in the store took."""
    store = prepared_store(tmp_path / "runs", template)
    lines = as_on_an_idle_machine(whole_table(template)[0], store)
    (longer,) = [job for job in jobs_with_epochs(40) if job.name == PRETRAIN]
    near = [values for values in lines.values() if values["stage"] == "pretrain"]
    ratio = statistics.median(values["work_hours"] / values["stated_hours"] for values in near)
    start = statistics.median(values["start_hours"] for values in lines.values() if values["stage"] == "pretrain")
    hours, by = measured.Measured(store).hours(longer, "CPU")
    work = stated.hours(longer.config, "CPU") - stated.START_HOURS["CPU"]
    assert by.startswith("3 earlier pretrain jobs on ")
    assert hours == pytest.approx(start + work * ratio)


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
        output = run(tmp_path / "runs", words).stdout
        (line,) = [line for line in output.splitlines() if line.startswith(f"wall time on {gpus} GPU")]
        assert "this machine has no GPU: on its CPU the jobs would take about " in output
        assert ("so 7 of the 8 GPUs would be enough" in output) == (gpus == 8)
        return line.split(": about ")[1]

    def hours(text: str) -> float:
        words = text.split()
        units = {"d": 24.0, "h": 1.0, "min": 1 / 60, "s": 1 / 3600}
        return sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))

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
    by = {"estimate_by": "the stated rate", "ranks": 1, "share": 1.0}
    assert note == {"estimate_hours": stated.hours(job.config, "GPU"), **by}


def test_the_dry_run_says_what_the_jobs_would_run_on(tmp_path: Path) -> None:
    smoke = ["table8", "--scale", "smoke", "--cluster", "local", "--dry-run"]
    cores = len(usable_cores())
    one = run(tmp_path / "runs", smoke).stdout
    assert f"({cores} core{'s' * (cores > 1)}, no GPU, one job at a time)" in one.replace("\n  ", " ")
    two = run(tmp_path / "runs", [*smoke, "--jobs", "2", "--gpus", "8"]).stdout.replace("\n  ", " ")
    assert cores < 2 or f"({cores} cores, no GPU, 2 jobs at once)" in two
    assert "--gpus 8 has no effect on this plan: its jobs run on the CPU" in two
    summary = [line for line in one.splitlines() if "seed 0" not in line]
    assert max(map(len, summary)) <= 80 and not any(word in one for word in ("naive", "unique", "((", "shared"))


def test_a_budget_counts_what_the_jobs_would_take_here(tmp_path: Path, template: Path) -> None:
    """60 GPU-hours are enough on GPUs; here they would be thousands of CPU-hours."""
    store = prepared_store(tmp_path / "runs", template)
    words = ["table8", "--cluster", "local", "--budget", "60"]
    done = run(store, [*words, "--dry-run"])
    assert "CPU-hours are left to run (this machine has no GPU), the budget is 60" in done.stdout, done.stdout
    assert "the budget is" not in run(store, [*words[:2], "slurm", *words[3:], "--dry-run"]).stdout
