"""The state table of orchestrate/jobs/states.py, row by row; parsing squeue and sacct; reused ids, forgotten jobs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import program

from jigclu.job_folder import JobFolder
from orchestrate.jobs import states, submissions
from orchestrate.jobs.slurm_queue import Row, SlurmUnavailable, array_task_ids, queue
from orchestrate.jobs.states import State, decide_state, look, record_ends, state_of
from orchestrate.slurm.script import sbatch

ID, NAME = "123_4", "20260101-000000-abcdef"


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    """A job submitted as task 4 of array 123."""
    folder = JobFolder(tmp_path / "runs" / "pretrain" / "ab12cd34ef56").create()
    folder.update_job(stage="pretrain", upstream=[], experiments=["table8"])
    (submissions.submissions_folder(folder.store) / NAME).mkdir(parents=True)
    submissions.note_group(
        folder.store, NAME, name="jigclu:...", jobs=[f"job{index}" for index in range(6)], slurm_id="123"
    )
    submissions.note_submission(folder, cluster="slurm", site="slurm", group=NAME, index=4, submitted=time.time() - 300)
    return folder


def set_recorded(folder: JobFolder, state: str, slurm_id: str = ID, message: str = "its message") -> None:
    folder.set_status(state, message=message, slurm_job_id=slurm_id)


def row(state: str, reason: str = "None", **more: Any) -> Row:
    return Row(ID, state, reason, **more)


@pytest.mark.parametrize(
    ("recorded", "seen", "expected", "note"),
    [
        (None, row("PENDING", "Priority"), "pending", "Priority"),
        ("pending", row("PENDING", "Dependency"), "pending", "Dependency"),
        ("interrupted", row("PENDING", "BeginTime"), "requeued", "BeginTime"),
        ("running", row("PENDING", "BeginTime"), "requeued", "BeginTime"),
        ("running", row("REQUEUED"), "requeued", ""),
        (None, row("PENDING", "DependencyNeverSatisfied"), "cancelled", "upstream did not finish"),
        (None, row("CANCELLED", "DependencyNeverSatisfied"), "cancelled", "upstream did not finish"),
        (None, row("RUNNING"), "running", "starting"),
        ("running", row("RUNNING"), "running", ""),
        ("running", row("COMPLETING"), "running", ""),
        ("failed", row("COMPLETING"), "failed", "its message"),
        ("failed", row("FAILED"), "failed", "its message"),
        ("failed", None, "failed", "its message"),
        ("running", row("CANCELLED"), "cancelled", "by scancel"),
        ("interrupted", row("CANCELLED"), "cancelled", "its message"),
        ("cancelled", None, "cancelled", "its message"),
        ("lost", None, "lost", "its message"),
        ("running", row("COMPLETED"), "lost", "left no result"),
        ("interrupted", row("FAILED"), "interrupted", "its message"),
        ("running", row("OUT_OF_MEMORY"), "failed", "out of memory: raise mem_gb"),
        ("running", row("TIMEOUT"), "failed", "its time limit before it could save"),
        ("running", row("NODE_FAIL", nodes="node7"), "failed", "its node was lost.*on node7"),
        (None, row("FAILED", exit_code="0:53"), "failed", "could not open its log"),
        ("running", row("FAILED", exit_code="74:0"), "failed", "its store could not be written"),
        ("running", row("FAILED", exit_code="9:0"), "failed", "killed by hand, or out of memory"),
        ("interrupted", None, "interrupted", "its message"),
        ("running", None, "running", "does not list it, but its heartbeat is 0 s old"),
        (None, None, "lost", "SLURM has no record"),
    ],
)  # fmt: skip
def test_every_row_of_the_table(
    job: JobFolder, recorded: str | None, seen: Row | None, expected: str, note: str
) -> None:
    if recorded:
        set_recorded(job, recorded)
    found = decide_state(job, ID, seen)
    assert found.name == expected
    assert re.search(note, found.note), found


def test_what_an_earlier_submission_left_in_the_folder_does_not_count(job: JobFolder) -> None:
    set_recorded(job, "failed", slurm_id="99")
    assert decide_state(job, ID, row("PENDING")).name == "pending"
    assert decide_state(job, ID, row("RUNNING")) == State("running", "starting", ID, row("RUNNING"))
    assert decide_state(job, ID, None).name == "lost"


def test_a_job_is_not_lost_before_slurm_can_have_listed_it(job: JobFolder) -> None:
    """A job once recorded as lost does not count as begun either."""
    assert decide_state(job, ID, None, "", time.time())[:2] == ("pending", "SLURM does not list it yet")
    assert decide_state(job, ID, None, "", time.time() - 300).name == "lost"
    set_recorded(job, "lost")
    assert decide_state(job, ID, row("PENDING", "Priority")).name == "pending"


def test_a_result_and_a_held_lock_outrank_everything(job: JobFolder) -> None:
    set_recorded(job, "running")
    with open(job.path / ".run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert decide_state(job, ID, row("FAILED")).name == "running"
    job.write_result({"loss": 1.0})
    assert decide_state(job, ID, row("FAILED")).name == "done" and state_of(job) == "done"


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [(None, "pending"), ("running", "running"), ("failed", "failed"), ("interrupted", "requeued")],
)
def test_without_an_answer_the_folder_decides(job: JobFolder, recorded: str | None, expected: str) -> None:
    if recorded:
        set_recorded(job, recorded)
    found = decide_state(job, ID, None, "Unable to contact slurm controller")
    assert (found.name, found.no_answer) == (expected, "Unable to contact slurm controller")


def test_a_running_job_that_slurm_forgot_is_lost_once_its_heartbeat_is_old(job: JobFolder) -> None:
    job.set_status("running", slurm_job_id=ID, heartbeat=time.time() - 1500)
    assert decide_state(job, ID, None)[:2] == ("lost", "SLURM has no record of it, and it left no result")


def test_a_job_without_a_heartbeat_says_so(job: JobFolder) -> None:
    job.set_status("running", slurm_job_id=ID, heartbeat=time.time() - 1500)
    assert decide_state(job, ID, row("RUNNING")).note == "no heartbeat for 25 min 00 s"


def test_the_end_of_a_killed_job_is_recorded_for_it(job: JobFolder) -> None:
    set_recorded(job, "running")
    before = job.status
    record_ends([job], {job.id: State("failed", "out of memory", ID)})
    assert (job.status["state"], job.status["message"], job.status["slurm_job_id"]) == ("failed", "out of memory", ID)
    assert {key: job.status[key] for key in ("heartbeat", "host", "pid")} == {
        key: before[key] for key in ("heartbeat", "host", "pid")
    }
    stamp = (job.path / "status.json").stat().st_mtime_ns
    record_ends([job], {job.id: State("failed", "out of memory", ID)})
    record_ends([job], {job.id: State("running", "", ID)})
    assert (job.path / "status.json").stat().st_mtime_ns == stamp


# -- what SLURM prints ------------------------------------------------------------------------------------------------
@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the PATH for SLURM commands that a test writes. Real ones: test_slurm_*.py."""
    program(tmp_path / "bin", "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr("orchestrate.jobs.slurm_queue._last", (float("-inf"), {}))
    return tmp_path / "bin"


def squeue_says(tools: Path, folder: JobFolder, slurm_id: str, state: str, script: str | None = None) -> None:
    script = script or str(submissions.submissions_folder(folder.store) / NAME / "submission.sh")
    program(tools, "squeue", f"echo '{slurm_id}|{state}|None|0:05|23:00:00|node1|0|{script}|'")


def test_squeue_is_parsed_whatever_characters_the_path_has(tools: Path, job: JobFolder) -> None:
    squeue_says(tools, job, "7", "RUNNING", "/a path/with|a bar/x.sh")
    assert queue()["7"] == Row("7", "RUNNING", "None", "0:05", "23:00:00", "node1", "/a path/with|a bar/x.sh", "0:0")


def test_an_answer_in_another_encoding_is_read(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", r"printf '7|RUNNING|\351|0:05|23:00:00|node1|0|/a \377/x.sh|\n'")
    assert os.fsencode(queue()["7"].script) == b"/a \xff/x.sh"
    program(tools, "squeue", r"printf '\377\351\n'")
    assert queue() == {}


@pytest.mark.parametrize(
    "row", ["4711_[,]|PENDING|x|0:00|UNLIMITED|n|0|/a|", "4711|   |x|0:00||n|0|/a|", "1|PENDING|a|b|c|d|²|/a|"]
)
def test_a_row_that_slurm_does_not_print_stops_nothing(tools: Path, row: str) -> None:
    program(tools, "squeue", f"echo '{row}'")
    assert all(found.exit_code == "0:0" for found in queue().values())


def test_no_more_tasks_are_listed_than_an_array_can_have() -> None:
    assert array_task_ids("7_[0-999999999]") == ["7_[0-999999999]"]


def test_a_notice_of_sbatch_in_another_encoding_does_not_lose_the_id(tools: Path, tmp_path: Path) -> None:
    program(tools, "sbatch", r"printf 'g\374nstig\n' >&2; echo 4711")
    (tmp_path / "submission.sh").write_text("#!/bin/sh\n")
    assert sbatch(tmp_path / "submission.sh") == "4711"


def test_array_tasks_that_never_started_are_listed_one_by_one() -> None:
    assert array_task_ids("7_[0-2,5%2]") == ["7_0", "7_1", "7_2", "7_5"]
    assert array_task_ids("7_3") == ["7_3"] and array_task_ids("7") == ["7"]


def test_a_link_to_the_store_is_followed_and_another_groups_job_is_not_taken(
    tools: Path, job: JobFolder, tmp_path: Path
) -> None:
    """A link to the store changes nothing; the same id in the same store but from another submission is another job."""
    (tmp_path / "link").symlink_to(job.store)
    linked = JobFolder(tmp_path / "link" / job.path.relative_to(job.store))
    squeue_says(tools, job, ID, "RUNNING")
    assert look([linked])[job.id].name == "running"
    squeue_says(
        tools,
        job,
        ID,
        "RUNNING",
        str(submissions.submissions_folder(job.store) / "20260202-000000-fedcba" / "submission.sh"),
    )
    program(tools, "sacct", "true")
    assert look([job])[job.id].name == "lost"


def test_a_job_whose_id_was_never_noted_is_found_by_its_script(tools: Path, job: JobFolder) -> None:
    """Its orchestrator died, or sbatch failed after the controller had accepted the job."""
    path = submissions.submissions_folder(job.store) / NAME / submissions.GROUP
    for more in ({}, {"refused": "Socket timed out"}):
        path.write_text(json.dumps({"name": "", "jobs": [f"job{index}" for index in range(6)], **more}))
        squeue_says(tools, job, ID, "PENDING")
        assert look([job])[job.id][:3] == ("pending", "None", ID)
        program(tools, "squeue", "true")
        assert look([job])[job.id].name == "new"


def test_accounting_that_does_not_answer_does_not_make_a_job_lost(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    program(tools, "sacct", "echo 'sacct: error: Problem talking to the database' >&2; exit 1")
    set_recorded(job, "interrupted")
    found = look([job])[job.id]
    assert found.name == "requeued" and "talking to the database" in found.no_answer


def test_a_reused_id_is_not_taken_for_the_job(tools: Path, job: JobFolder) -> None:
    """SLURM reuses ids: the same number with another script, or in accounting but submitted long before."""
    program(tools, "sacct", f"echo '{ID}|COMPLETED|2001-01-01T00:00:00|0:0|00:01:00|node1'")
    squeue_says(tools, job, ID, "RUNNING")
    assert state_of(job) == "running"
    squeue_says(tools, job, ID, "RUNNING", "/elsewhere/submission.sh")
    assert look([job])[job.id].name == "lost"


def test_a_job_that_squeue_no_longer_lists_is_looked_up_in_accounting(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    program(
        tools,
        "sacct",
        f"echo '{ID}|NODE_FAIL|{now}|0:0|00:01:00|node1'; echo '{ID}|CANCELLED by 0|{now}|0:0|00:01:00|node1'",
    )
    assert look([job])[job.id].name == "cancelled"  # the last run counts


def test_a_cancelled_array_with_a_single_row_cancels_its_tasks(tools: Path, job: JobFolder) -> None:
    squeue_says(tools, job, "123", "CANCELLED")
    assert look([job])[job.id].name == "cancelled"


def test_a_job_is_lost_if_accounting_is_off_or_has_forgotten_it(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    program(tools, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert look([job])[job.id] == State("lost", "SLURM has no record of it, and it left no result", ID)
    set_recorded(job, "done")
    record_ends([job], look([job]))
    assert job.status["state"] == "done"  # its result may not be visible here yet
    job.set_status("running", slurm_job_id=ID, heartbeat=time.time() - 1500)
    program(tools, "sacct", "true")
    assert look([job])[job.id].name == "lost"
    set_recorded(job, "interrupted")
    assert look([job])[job.id].name == "interrupted"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (
            "JobId=127 ArrayJobId=123 ArrayTaskId=4 JobState=PENDING Reason=Priority Command={script} WorkDir=/x",
            "pending",
        ),
        ("JobId=127 ArrayJobId=123 ArrayTaskId=0-5%2 JobState=PENDING Reason=None Command={script}", "pending"),
        ("JobId=127 ArrayJobId=123 ArrayTaskId=4 JobState=RUNNING Reason=None Command={script}", "running"),
        ("JobId=127 ArrayJobId=123 ArrayTaskId=4 JobState=RUNNING Reason=None Command=/elsewhere/x.sh", "lost"),
        ("JobId=127 ArrayJobId=123 ArrayTaskId=4 JobState=COMPLETED Reason=None Command={script}", "lost"),
    ],
)
def test_an_empty_squeue_does_not_make_jobs_lost_that_scontrol_still_shows(
    tools: Path, job: JobFolder, shown: str, expected: str
) -> None:
    """They would be submitted a second time. Accounting is off here."""
    program(tools, "squeue", "true")
    program(tools, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    script = submissions.submissions_folder(job.store) / NAME / "submission.sh"
    program(tools, "scontrol", f"echo '{shown.format(script=script)}'")
    assert look([job])[job.id].name == expected


def test_scontrol_decides_nothing_while_it_does_not_answer(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    program(tools, "sacct", "true")
    program(tools, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert look([job])[job.id].name == "lost"
    program(tools, "scontrol", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    found = look([job])[job.id]
    assert found.name == "pending" and "Unable to contact" in found.no_answer


def test_lines_that_are_no_rows_are_skipped(tools: Path, job: JobFolder) -> None:
    """A site's wrapper or a plugin may print a warning to stdout, even one with separators."""
    script = submissions.submissions_folder(job.store) / NAME / "submission.sh"
    noise = "echo 'warning: maintenance on Monday'; echo; echo 'a|b|c|d|e|f|g|h|'"
    program(tools, "squeue", f"{noise}; echo '{ID}|RUNNING|None|0:05|23:00:00|node1|0|{script}|'; echo bye")
    assert look([job])[job.id].name == "running" and list(queue()) == [ID]
    program(tools, "squeue", noise)
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    program(tools, "sacct", f"{noise}; echo '{ID}|TIMEOUT|{now}|0:0|00:01:00|node1'")
    found = look([job])[job.id]
    assert found.name == "failed" and "time limit" in found.note


def test_a_job_counts_as_pending_while_slurm_does_not_answer(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    found = look([job])[job.id]
    assert found.name == "pending" and "Unable to contact" in found.no_answer
    with pytest.raises(SlurmUnavailable, match="Unable to contact slurm controller"):
        queue()


def test_a_refused_submission_and_one_without_an_id_leave_the_job_new(tools: Path, job: JobFolder) -> None:
    program(tools, "squeue", "true")
    path = submissions.submissions_folder(job.store) / NAME / submissions.GROUP
    path.write_text('{"name": "", "jobs": ["a"], "refused": "Invalid account"}')
    assert state_of(job) == "new"
    path.write_text('{"name": "", "jobs": ["a"]}')
    assert state_of(job) == "new" and submissions.current_id(job) is None


def test_a_listed_job_is_cached_for_a_moment_and_a_missing_one_is_asked_for_again(tools: Path, job: JobFolder) -> None:
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


def test_the_written_table_names_every_state() -> None:
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
        "as recorded",
    } <= named
