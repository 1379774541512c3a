"""What a job cost is one number, wherever it is shown; and one definition, over all attempts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.orchestrator import PRETRAIN, PROBE, borrow, named, prepared_store, whole_table
from helpers.report import run as report

from jigclu.job_folder import JobFolder
from orchestrate.cli.display import describe, time_left
from orchestrate.cli.why import why
from orchestrate.cost.measured import RATES, Measured
from orchestrate.jobs.spent import closed, device_hours, hours_spent, note_end, seconds_spent, times_estimate, took
from orchestrate.jobs.states import State, look
from orchestrate.jobs.submissions import note_submission
from orchestrate.mirror import sync


@pytest.fixture
def finished(tmp_path: Path, template: Path) -> Path:
    whole, _ = whole_table(template)
    store = prepared_store(tmp_path / "runs", template)
    borrow(whole, store, but=[])
    shutil.copytree(whole / "source", store / "source")
    shutil.copy(whole / RATES, store)
    return store


def test_why_status_the_page_mlflow_and_rates_show_the_same_time_and_ratio(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was 0.59 on the page and 1.00 in `why` for one job."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sync(finished)
    results = report(finished, finished.parent / "out", "--scale", "smoke")
    page = (finished.parent / "out" / "index.html").read_text()
    rates = {values["job"]: values for values in map(json.loads, (finished / RATES).read_text().splitlines())}
    ratios = {line.job: line.ratio for line in Measured(finished).lines}
    for name in (PRETRAIN, PROBE):
        job = named(finished, name)
        seconds, ratio, spent = seconds_spent(job), times_estimate(job), hours_spent(job)
        assert seconds and ratio and spent and seconds > job.result["seconds"]
        shown = f"{took(job)}, {device_hours(spent, 'CPU')} on 1 x "
        why(finished, job.id)
        assert f"spent:       {shown}" in capsys.readouterr().out
        assert f"in {took(job)}" in describe(job, look([job])[job.id])
        assert rates[job.id]["hours"] == pytest.approx(spent) and ratios[job.id] == pytest.approx(ratio)
        (entry,) = [entry for entry in results["jobs"] if entry["job"] == job.id]
        assert entry["spent_hours"] == pytest.approx(spent, rel=1e-4)
        block = page[page.index(f'id="job-{job.id}"') :][:4000]
        assert f"{took(job).split(',')[0]}, {device_hours(entry['spent_hours'], 'CPU')}" in block
        assert f"spent / estimated {entry['spent_hours'] / entry['estimated_hours']:.2f}" in block
        assert f"{ratio:.2f} times" in took(job)


WHERE = {"host": "node1", "slurm_job_id": None}


def test_time_spent_counts_every_attempt_also_one_that_was_killed(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "pretrain" / "0123456789ab").create()
    attempts = [{"began": 100.0, "ended": 160.0, "step": 0, **WHERE}, {"began": 1000.0, "step": 5, **WHERE}]
    job.set_status("running", attempts=attempts, heartbeat=1030.0)  # killed: its last sign of life was at 1030
    assert seconds_spent(job) == pytest.approx(90)
    job.set_status("running", attempts=[*closed(job.status), {"began": 2000.0, "step": 9, **WHERE}], heartbeat=2001.0)
    assert [attempt.get("ended") for attempt in job.status["attempts"]] == [160.0, 1030.0, None]
    note_end(job)
    assert job.status["attempts"][2]["ended"] > 2000 and job.status["state"] == "running"
    job.set_status(
        "running", attempts=[{**job.status["attempts"][0]}, {"began": 1000.0, "ended": 1010.0, "step": 5, **WHERE}]
    )
    note_submission(job, share=0.5, estimate_hours=0.01)
    job.write_result({"loss": 1.0}, seconds=7.0, world=2)
    assert seconds_spent(job) == pytest.approx(70) and hours_spent(job) == pytest.approx(70 * 2 * 0.5 / 3600)
    assert took(job) == f"1 min 10 s, {70 / 3600 / 0.01:.2f} times the estimate"


def test_a_job_of_an_older_version_spent_its_time_in_training(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "pretrain" / "0123456789ab").create()
    job.set_status("running", attempts=[{"began": 1.0, "step": 0, **WHERE}, {"began": 2.0, "step": 0, **WHERE}])
    job.write_result({"loss": 1.0}, seconds=7.0)
    assert seconds_spent(JobFolder(tmp_path / "pretrain" / "none")) is None
    status = {key: value for key, value in job.status.items() if key != "attempts"}
    (job.path / "status.json").write_text(json.dumps(status))
    assert seconds_spent(job) == 7.0


def test_the_time_left_on_slurm_is_that_of_the_longest_chain(tmp_path: Path) -> None:
    folders = []
    for index, upstream in enumerate(([], ["00000000000a"], [])):
        folder = JobFolder(tmp_path / "pretrain" / f"00000000000{'abc'[index]}").create()
        folder.update_job(stage="pretrain", upstream=upstream)
        note_submission(folder, group="g", site="slurm", index=0, submitted=1.0, estimate_hours=4.0, ranks=4, share=1.0)
        folders.append(folder)
    states = {folder.id: State("pending", slurm_id=str(index + 1)) for index, folder in enumerate(folders)}
    assert time_left(folders[::-1], states) == "about 2 h 00 min left, waiting in the queue not counted"
    assert time_left(folders, dict.fromkeys(states, State("done"))) == ""


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0, "0 GPU-h"), (0.00049, "0.0005 GPU-h"), (0.0321, "0.032 GPU-h"), (7.54, "7.5 GPU-h"), (1187, "1,187 GPU-h")],
)
def test_device_hours_have_two_figures(hours: float, text: str) -> None:
    assert device_hours(hours, "GPU") == text


def test_the_definition_is_one(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from orchestrate.jobs.spent import SPENT

    why(finished, named(finished, PROBE).id)
    assert SPENT in re.sub(r"\s+", " ", capsys.readouterr().out)
