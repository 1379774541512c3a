"""Files of a job folder that are empty, torn or hold no finite numbers: what is shown, and what runs again."""

from __future__ import annotations

from pathlib import Path

import pytest

from jigclu.files import UnreadableFile, read_json
from jigclu.job_folder import JobFolder
from orchestrate.jobs.states import look, state_of
from orchestrate.mirror.job_content import run_state


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "runs" / "linear" / "ab12cd34ef56").create()
    folder.update_job(stage="linear", upstream=[], experiments=["table8"], uses=[], name="linear m=2")
    folder.write_result({"top1": 61.0})
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "result.json is empty"),
        ("\0" * 40, "result.json is empty"),
        ('{"metrics": {"top', "result.json is torn or is no JSON"),
        ("[1]", "result.json holds no JSON object"),
        ("{}", "result.json has no metrics"),
        ('{"metrics": {"top1": NaN}}', "result.json: top1 is nan"),
        ('{"metrics": {"top1": "61"}}', "result.json: top1 is '61'"),
    ],
)
def test_a_result_that_is_not_whole_is_none(job: JobFolder, content: str, message: str) -> None:
    assert job.done and state_of(job) == "done" and job.problems == []
    (job.path / "result.json").write_text(content)
    assert not job.done and job.result == {} and job.problems == [message]
    state = look([job])[job.id]
    assert state.name == "failed" and state.note == f"it left no result; {message}; it will run again"
    assert run_state(job.status, job.result) == "failed"
    job.write_result({"top1": 62.0})
    assert job.done and state_of(job) == "done"


def test_a_result_that_was_deleted_is_none(job: JobFolder) -> None:
    (job.path / "result.json").unlink()
    assert look([job])[job.id][:2] == ("failed", "it left no result")


def test_an_unreadable_status_counts_as_none_and_is_named(job: JobFolder) -> None:
    (job.path / "result.json").unlink()
    (job.path / "status.json").write_text("{")
    assert look([job])[job.id][:2] == ("new", "status.json is torn or is no JSON; it will run again")
    job.set_status("running", step=3)
    assert job.status["step"] == 3


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    assert read_json(path) == {}
    path.mkdir()
    with pytest.raises(UnreadableFile, match=f"{path} is a folder, not a file"):
        read_json(path)


def test_lines_of_metrics_that_are_no_steps_are_skipped(job: JobFolder) -> None:
    job.log(1, 0.1, loss=1.0)
    with open(job.metrics_path, "ab") as file:
        file.write(b'5\n"x"\n\xff\xfe\n{"loss": 1}\n{"step": 2, "epoch')
    assert [line["step"] for line in job.metrics()] == [1]
    job.cut_metrics(1)
    assert len(job.metrics_path.read_text().splitlines()) == 1
