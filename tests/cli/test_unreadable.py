"""Files of a job folder that are empty, torn or hold no finite numbers: what is shown, and what runs again."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.orchestrator import (
    PROBE,
    RANDOM,
    ROOT,
    borrow,
    environment,
    named,
    prepared_store,
    run,
    table8,
    whole_table,
)

from jigclu.files import UnreadableFile, read_json, write_json
from jigclu.job_folder import JobFolder
from orchestrate.cli import cancel, why
from orchestrate.jobs import submissions
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


def orchestrate(store: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "orchestrate", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(store), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def finished(tmp_path: Path, template: Path) -> Path:
    """A copy of the store of a whole tiny Table 8."""
    whole, _ = whole_table(template)
    store = prepared_store(tmp_path / "runs", template)
    borrow(whole, store, but=[])
    return store


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_one_unreadable_job_is_named_and_the_others_are_shown(finished: Path, content: str) -> None:
    job, other = named(finished, PROBE), named(finished, RANDOM)
    (job.path / "job.json").write_text(content)
    named_file = f"warning: {job.path / 'job.json'} "
    for words, message in (
        (["status", "--all"], "6 jobs: 6 done"),
        (["cancel", "table8"], "nothing to cancel"),
        (["retry"], "nothing to retry"),
        (["clean"], ""),
        (["why", other.id], RANDOM),
    ):
        code, said = orchestrate(finished, *words)
        assert code == 0 and named_file in said and message in said and "Traceback" not in said, said
        assert f"{job.path.relative_to(finished)}  " not in said or words != ["clean"], said
    code, said = orchestrate(finished, "sync")
    assert code == 1 and f"MLflow has every job but linear/{job.id}, which cannot be read: job.json " in said, said
    done = run(finished, [*table8(), "--dry-run"])
    assert done.returncode == 0 and job.id in done.stdout and "stale" in done.stdout, done.stdout + done.stderr


def test_the_command_writes_an_unreadable_job_again_and_keeps_the_old_file(finished: Path) -> None:
    job = named(finished, PROBE)
    before = job.job
    (job.path / "job.json").write_text("{")
    done = run(finished, table8())
    assert done.returncode == 0 and "job.json is torn or is no JSON: written again" in done.stdout, done
    assert job.job["config"] == before["config"] and job.job["uses"] == before["uses"]
    assert job.job["source_digest"] == "unknown"  # so it is shown as stale
    assert (job.path / "job.json.unreadable").read_text() == "{"


def test_an_unreadable_status_or_submission_stops_no_command(finished: Path) -> None:
    job = named(finished, PROBE)
    for name in ("status.json", "submission.json"):
        (job.path / name).write_text("")
    for words in (["status", "--all"], ["why", job.id], ["cancel", "all"], ["retry"], ["clean"], ["sync"]):
        code, said = orchestrate(finished, *words)
        assert code == 0 and "Traceback" not in said, said
    (job.path / "result.json").write_text("")
    code, said = orchestrate(finished, "status")
    assert code == 0 and "1 new, 6 done" in said and "result.json is empty; status.json is empty" in said, said
    done = run(finished, [*table8(), "--dry-run"])
    assert done.returncode == 0 and f"{job.path}: result.json is empty; it counts as absent" in done.stdout, done


@pytest.mark.parametrize(
    "fields",
    [
        {"submitted": 1e20},
        {"group": "a\0b"},
        {"group": "../../elsewhere"},
        {"cluster": "local", "estimate_hours": 1.0},
        {"cluster": "slurm", "group": "g", "submitted": 1.0, "site": "slurm"},
        {"cluster": "slurm", "group": "g", "index": 0, "site": "slurm"},
    ],
)
def test_a_submission_without_what_it_must_have_stops_no_command(
    job: JobFolder, fields: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as another program or a hand can have left it: `why` shows the rest."""
    write_json(job.path / "submission.json", fields)
    (submissions.submissions_folder(job.store) / "g").mkdir(parents=True)
    write_json(submissions.submissions_folder(job.store) / "g" / submissions.GROUP, {"name": "x"})
    (submissions.submissions_folder(job.store) / "g" / submissions.LIST).write_bytes(b"/s/\xff\n")
    assert why.why(job.store, job.id) == 0 and "state:" in capsys.readouterr().out
    assert submissions.current_id(job) is None and submissions.batch_logs(job) == []


def test_no_answer_to_a_question_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # Ctrl-D
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert not cancel.confirmed("cancel?")


@pytest.mark.parametrize("pid", [1e300, 2**40, 0, -1, 1.5, True])
def test_a_number_that_no_process_has_is_a_damaged_status(job: JobFolder, pid: object) -> None:
    write_json(job.path / "status.json", {"state": "running", "pid": pid})
    assert job.status == {}
    write_json(job.path / "submission.json", {"cluster": "local", "submitted": 1.0, "pid": pid})
    assert submissions.submission(job) == {}


@pytest.mark.parametrize(
    "attempt",
    [{"began": 1e20}, {"began": 1e308, "ended": -1e308}, {"began": -1e15, "ended": 1.0}, {"began": 1.0, "ended": 1e12}],
)
def test_times_that_no_clock_has_are_a_damaged_status(job: JobFolder, attempt: dict[str, float]) -> None:
    write_json(job.path / "status.json", {"state": "failed", "attempts": [attempt]})
    assert job.status == {} and "status.json: attempts is" in job.problems[0]


def test_a_submission_that_cannot_be_read_is_found_again(job: JobFolder) -> None:
    """Otherwise the job, which may be in the queue, would be submitted a second time."""
    group = submissions.submissions_folder(job.store) / "20260101-000000-abcdef"
    group.mkdir(parents=True)
    (group / submissions.LIST).write_text(f"/elsewhere/aaaaaaaaaaaa\n{job.path}\n")
    submissions.note_group(job.store, group.name, jobs=["aaaaaaaaaaaa", job.id], slurm_id="12")
    submissions.note_submission(job, cluster="slurm", site="slurm", group=group.name, index=1, submitted=1.0)
    assert submissions.current_id(job) == "12_1"
    (job.path / "submission.json").write_text("{")
    assert submissions.current_id(job) == "12_1"
    (group / submissions.GROUP).write_text("")
    assert submissions.read_group(job.store, group.name) == {"jobs": ["aaaaaaaaaaaa", job.id]}
    assert submissions.current_id(job) is None
