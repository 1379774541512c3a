"""The state table of orchestrate/states.py, line by line; what squeue and sacct print; ids used again, jobs forgotten."""

from __future__ import annotations

import fcntl
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import program

from jigclu.job_folder import JobFolder
from orchestrate.jobs import states, submissions
from orchestrate.jobs.slurm_queue import Row, SlurmUnavailable, queue, tasks
from orchestrate.jobs.states import State, judge, look, state_of, write_down

ID, NAME = "123_4", "20260101-000000-abcdef"


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    """A job submitted as task 4 of array 123."""
    folder = JobFolder(tmp_path / "runs" / "pretrain" / "ab12cd34ef56").create()
    folder.update_job(stage="pretrain", upstream=[], experiments=["table8"])
    (submissions.submissions(folder.store) / NAME).mkdir(parents=True)
    submissions.note_group(
        folder.store, NAME, name="jigclu:...", jobs=[f"job{index}" for index in range(6)], slurm_id="123"
    )
    submissions.note_submission(folder, cluster="slurm", site="slurm", group=NAME, index=4, submitted=time.time() - 300)
    return folder


def says(folder: JobFolder, state: str, slurm_id: str = ID, message: str = "its words") -> None:
    folder.set_status(state, message=message, slurm_job_id=slurm_id)


def row(state: str, reason: str = "None", **more: Any) -> Row:
    return Row(ID, state, reason, **more)


@pytest.mark.parametrize(
    ("said", "seen", "wanted", "note"),
    [
        (None, row("PENDING", "Priority"), "pending", "Priority"),
        ("pending", row("PENDING", "Dependency"), "pending", "Dependency"),
        ("interrupted", row("PENDING", "BeginTime"), "requeued", "BeginTime"),
        ("running", row("PENDING", "BeginTime"), "requeued", "BeginTime"),
        ("running", row("REQUEUED"), "requeued", ""),
        (None, row("PENDING", "DependencyNeverSatisfied"), "cancelled", "what it builds on did not finish"),
        (None, row("CANCELLED", "DependencyNeverSatisfied"), "cancelled", "what it builds on did not finish"),
        (None, row("RUNNING"), "running", "starting"),
        ("running", row("RUNNING"), "running", ""),
        ("running", row("COMPLETING"), "running", ""),
        ("failed", row("COMPLETING"), "failed", "its words"),
        ("failed", row("FAILED"), "failed", "its words"),
        ("failed", None, "failed", "its words"),
        ("running", row("CANCELLED"), "cancelled", "by scancel"),
        ("interrupted", row("CANCELLED"), "cancelled", "its words"),
        ("cancelled", None, "cancelled", "its words"),
        ("lost", None, "lost", "its words"),
        ("running", row("COMPLETED"), "lost", "left no result"),
        ("interrupted", row("FAILED"), "interrupted", "its words"),
        ("running", row("OUT_OF_MEMORY"), "failed", "out of memory: raise mem_gb"),
        ("running", row("TIMEOUT"), "failed", "its time limit before it could save"),
        ("running", row("NODE_FAIL", nodes="node7"), "failed", "its node was lost.*on node7"),
        (None, row("FAILED", exit_code="0:53"), "failed", "could not open its log"),
        ("running", row("FAILED", exit_code="74:0"), "failed", "its store could not be written"),
        ("running", row("FAILED", exit_code="9:0"), "failed", "killed by hand, or out of memory"),
        ("interrupted", None, "interrupted", "its words"),
        ("running", None, "lost", "SLURM has no record"),
        (None, None, "lost", "SLURM has no record"),
    ],
)  # fmt: skip
def test_the_table(job: JobFolder, said: str | None, seen: Row | None, wanted: str, note: str) -> None:
    if said:
        says(job, said)
    found = judge(job, ID, seen)
    assert found.name == wanted
    assert re.search(note, found.note), found


def test_what_an_earlier_submission_left_in_the_folder_does_not_count(job: JobFolder) -> None:
    says(job, "failed", slurm_id="99")
    assert judge(job, ID, row("PENDING")).name == "pending"
    assert judge(job, ID, row("RUNNING")) == State("running", "starting", ID, row("RUNNING"))
    assert judge(job, ID, None).name == "lost"


def test_a_job_is_not_lost_before_slurm_can_have_listed_it(job: JobFolder) -> None:
    """Nor has one begun that was once written down as lost."""
    assert judge(job, ID, None, "", time.time())[:2] == ("pending", "SLURM does not list it yet")
    assert judge(job, ID, None, "", time.time() - 300).name == "lost"
    says(job, "lost")
    assert judge(job, ID, row("PENDING", "Priority")).name == "pending"


def test_a_result_and_a_held_lock_win_over_all(job: JobFolder) -> None:
    says(job, "running")
    with open(job.path / ".run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert judge(job, ID, row("FAILED")).name == "running"
    job.write_result({"loss": 1.0})
    assert judge(job, ID, row("FAILED")).name == "done" and state_of(job) == "done"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [(None, "pending"), ("running", "running"), ("failed", "failed"), ("interrupted", "requeued")],
)
def test_without_an_answer_the_folder_is_believed(job: JobFolder, said: str | None, wanted: str) -> None:
    if said:
        says(job, said)
    found = judge(job, ID, None, "Unable to contact slurm controller")
    assert (found.name, found.no_answer) == (wanted, "Unable to contact slurm controller")


def test_a_job_without_a_sign_of_life_says_so(job: JobFolder) -> None:
    job.set_status("running", slurm_job_id=ID, heartbeat=time.time() - 1500)
    assert judge(job, ID, row("RUNNING")).note == "no sign of life for 25 min"


def test_how_a_job_ended_that_could_not_say_so_is_written_down(job: JobFolder) -> None:
    says(job, "running")
    before = job.status
    write_down([job], {job.id: State("failed", "out of memory", ID)})
    assert (job.status["state"], job.status["message"], job.status["slurm_job_id"]) == ("failed", "out of memory", ID)
    assert {key: job.status[key] for key in ("heartbeat", "host", "pid")} == {
        key: before[key] for key in ("heartbeat", "host", "pid")
    }
    stamp = (job.path / "status.json").stat().st_mtime_ns
    write_down([job], {job.id: State("failed", "out of memory", ID)})
    write_down([job], {job.id: State("running", "", ID)})
    assert (job.path / "status.json").stat().st_mtime_ns == stamp


# -- what SLURM prints ------------------------------------------------------------------------------------------------
@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of which tests write the SLURM commands. Real ones: tests/test_slurm_*.py."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr("orchestrate.jobs.slurm_queue._last", (float("-inf"), {}))
    return tmp_path / "bin"


def squeue_says(tools: Path, folder: JobFolder, slurm_id: str, state: str, script: str | None = None) -> None:
    script = script or str(submissions.submissions(folder.store) / NAME / "submission.sh")
    program(tools, "squeue", f"echo '{slurm_id}|{state}|None|0:05|23:00:00|node1|0|{script}|'")


def test_squeue_is_read_whatever_the_path(tools: Path, job: JobFolder) -> None:
    squeue_says(tools, job, "7", "RUNNING", "/a path/with|a bar/x.sh")
    assert queue()["7"] == Row("7", "RUNNING", "None", "0:05", "23:00:00", "node1", "/a path/with|a bar/x.sh", "0:0")


def test_tasks_that_never_started_are_told_apart() -> None:
    assert tasks("7_[0-2,5%2]") == ["7_0", "7_1", "7_2", "7_5"] and tasks("7_3") == ["7_3"] and tasks("7") == ["7"]


def test_a_store_under_another_name_and_a_job_of_another_group(tools: Path, job: JobFolder, tmp_path: Path) -> None:
    """A link to the store changes nothing; the same id in the same store, but of another submission, is another job."""
    (tmp_path / "link").symlink_to(job.store)
    linked = JobFolder(tmp_path / "link" / job.path.relative_to(job.store))
    squeue_says(tools, job, ID, "RUNNING")
    assert look([linked])[job.id].name == "running"
    squeue_says(
        tools, job, ID, "RUNNING", str(submissions.submissions(job.store) / "20260202-000000-fedcba" / "submission.sh")
    )
    program(tools, "sacct", "true")
    assert look([job])[job.id].name == "lost"


def test_a_job_whose_id_was_never_noted_is_found_by_its_script(tools: Path, job: JobFolder) -> None:
    """Its orchestrator died, or sbatch failed after the controller had taken the job."""
    path = submissions.submissions(job.store) / NAME / submissions.GROUP
    for more in ({}, {"refused": "Socket timed out"}):
        path.write_text(json.dumps({"name": "", "jobs": [f"job{index}" for index in range(6)], **more}))
        squeue_says(tools, job, ID, "PENDING")
        assert look([job])[job.id][:3] == ("pending", "None", ID)
        program(tools, "squeue", "true")
        assert look([job])[job.id].name == "new"


def test_accounting_that_is_away_is_no_record_of_nothing(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    program(tools, "sacct", "echo 'sacct: error: Problem talking to the database' >&2; exit 1")
    says(job, "interrupted")
    found = look([job])[job.id]
    assert found.name == "requeued" and "talking to the database" in found.no_answer


def test_an_id_that_is_somebody_elses_by_now_is_not_ours(tools: Path, job: JobFolder) -> None:
    """Ids are used again: the same number, but another script; the same number in accounting, but submitted long before."""
    program(tools, "sacct", f"echo '{ID}|COMPLETED|2001-01-01T00:00:00|0:0|00:01:00|node1'")
    squeue_says(tools, job, ID, "RUNNING")
    assert state_of(job) == "running"
    squeue_says(tools, job, ID, "RUNNING", "/elsewhere/submission.sh")
    assert look([job])[job.id].name == "lost"


def test_a_job_that_squeue_has_let_go_is_looked_for_in_accounting(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    program(
        tools,
        "sacct",
        f"echo '{ID}|NODE_FAIL|{now}|0:0|00:01:00|node1'; echo '{ID}|CANCELLED by 0|{now}|0:0|00:01:00|node1'",
    )
    assert look([job])[job.id].name == "cancelled"  # the last run counts


def test_a_whole_array_that_was_cancelled_has_one_row(tools: Path, job: JobFolder) -> None:
    squeue_says(tools, job, "123", "CANCELLED")
    assert look([job])[job.id].name == "cancelled"


def test_where_accounting_is_off_or_has_forgotten_the_job_is_lost(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    program(tools, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert look([job])[job.id] == State("lost", "SLURM has no record of it, and it left no result", ID)
    says(job, "done")
    write_down([job], look([job]))
    assert job.status["state"] == "done"  # its result may only not be visible here yet
    says(job, "running")
    program(tools, "sacct", "true")
    assert look([job])[job.id].name == "lost"
    says(job, "interrupted")
    assert look([job])[job.id].name == "interrupted"


def test_a_job_counts_as_queued_while_slurm_does_not_answer(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    found = look([job])[job.id]
    assert found.name == "pending" and "Unable to contact" in found.no_answer
    with pytest.raises(SlurmUnavailable, match="Unable to contact slurm controller"):
        queue()


def test_a_refused_submission_and_one_without_an_id_are_none(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    path = submissions.submissions(job.store) / NAME / submissions.GROUP
    path.write_text('{"name": "", "jobs": ["a"], "refused": "Invalid account"}')
    assert state_of(job) == "new"
    path.write_text('{"name": "", "jobs": ["a"]}')
    assert state_of(job) == "new" and submissions.current_id(job) is None


def test_a_yes_serves_for_a_moment_and_a_no_is_asked_for_again(tools: Path, job: JobFolder) -> None:
    squeue_says(tools, job, ID, "PENDING")
    assert state_of(job) == "pending"
    program(tools, "squeue", "exit 1")
    assert state_of(job) == "pending"  # for two seconds
    program(tools, "squeue", "true")
    program(tools, "sacct", "true")
    time.sleep(2.1)
    assert state_of(job) == "lost"
    squeue_says(tools, job, ID, "PENDING")
    assert state_of(job) == "pending"


def test_every_line_of_the_written_table_names_a_state() -> None:
    lines = [line for line in (states.__doc__ or "").splitlines() if line.startswith("| ")][1:]
    named = {line.rstrip("| ").rsplit("|", 1)[1].split(",")[0].split(":")[0].strip() for line in lines}
    assert {
        "pending",
        "running",
        "requeued",
        "done",
        "failed",
        "cancelled",
        "lost",
        "interrupted",
        "new",
        "as it says",
    } <= named
