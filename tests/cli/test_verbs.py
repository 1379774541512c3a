"""The verbs of `python -m orchestrate` on jobs that ran here. On a cluster: tests/slurm/test_slurm_*.py."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.cluster import assert_bit_equal, store_with_only, until_step
from helpers.orchestrator import (
    PRETRAIN,
    PROBE,
    ROOT,
    borrow,
    environment,
    jobs,
    named,
    prepared_store,
    program,
    start,
    table8,
    whole_table,
)

from jigclu.config import ConfigError
from jigclu.job_folder import JobFolder
from orchestrate.cli import clean
from orchestrate.jobs import submissions
from orchestrate.jobs.spent import took
from orchestrate.jobs.states import state_of


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
    shutil.copytree(whole / "source", store / "source")
    shutil.copy(whole / "rates.jsonl", store)
    return store


def test_status_counts_done_jobs_and_shows_named_ones(finished: Path) -> None:
    code, said = orchestrate(finished, "status")
    assert code == 0 and said.startswith("7 jobs: 7 done\n") and "7 jobs took " in said, said
    job = named(finished, PROBE)
    code, said = orchestrate(finished, "status", job.id[:5])
    line = said.splitlines()[0]
    assert code == 0 and line.startswith(f"done        {job.id}") and PROBE in line, said
    assert f"top1 {job.result['metrics']['top1']:.2f}" in line and "times the estimate" in line
    code, said = orchestrate(finished, "status", "m", "--all")
    assert code == 0 and said.count("\ndone ") + said.startswith("done ") == 7


def test_a_result_of_a_different_code_version_is_stale_and_why_names_the_files(finished: Path) -> None:
    job = named(finished, PROBE)
    tree = (job.path / "source").resolve()
    other = tree.with_name("0123456789ab")
    shutil.copytree(tree, other)
    (other / "jigclu" / "stages" / "linear.py").write_text("# other code\nimport jigclu.losses\n")
    (job.path / "source").unlink()
    (job.path / "source").symlink_to(os.path.relpath(other, job.path))
    job.update_job(source_digest="0" * 12)
    code, said = orchestrate(finished, "status")
    assert code == 0 and "7 jobs: 1 stale, 6 done" in said, said
    code, said = orchestrate(finished, "why", job.id)
    assert "state:       stale  made by a different code version" in said, said
    assert "jigclu/stages/linear.py" in said and "differ" in said and "jigclu/counter_rng.py differ" not in said
    assert "the same as the data root has now" in said


def test_why_shows_where_a_number_comes_from(finished: Path) -> None:
    job, encoder = named(finished, PROBE), named(finished, PRETRAIN)
    code, said = orchestrate(finished, "why", job.id)
    values = job.job
    for text in (
        "state:       done", "evidence:    result.json exists", "result for:  table8 m=2 (top1)",
        f"upstream:    {encoder.id}  done",
        f"commit {values['commit'][:12]}", values["source_digest"], values["data_fingerprint"],
        "attempt:     1 from step 0",
        "estimated:   ", ", by the stated rate", f"spent:       {took(job)}, ", "times the estimate, ", " CPU-h on 1 x ",
        f"folder:      {job.path}", f"command:     {values['command']}", "_0_log.out",
    ):  # fmt: skip
        assert text in said, (text, said)
    assert code == 0
    job.update_job(data_fingerprint=f"{'0' * 16}+{values['data_fingerprint'].split('+')[1]}")
    code, said = orchestrate(finished, "why", job.id)
    assert code == 0 and "the data root has a different version of train\n" in said, said


def test_logs_are_found_and_followed(finished: Path) -> None:
    job = named(finished, PROBE)
    code, said = orchestrate(finished, "logs", job.id)
    assert code == 0 and said.startswith(f"==> {job.path / 'logs'}") and "step 4/4" in said, said
    command = [sys.executable, "-m", "orchestrate", "logs", job.id, "-f"]
    child = subprocess.Popen(command, cwd=ROOT, env=environment(finished), stdout=subprocess.PIPE, text=True)
    assert child.stdout
    while "step 4/4" not in child.stdout.readline():
        assert child.poll() is None
    assert child.wait(timeout=30) == 0  # the job is done: nothing more will come


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["why", "table8"], "table8 is 7 jobs; name one: "),
        (["why", "0000"], "has the id '0000' (at least 4 characters, or SLURM's id)"),
        (["status", "table9x"], "'table9x' is no job of the store"),
        (["status", "tabel8"], "did you mean table8"),
        (["status", "table1"], "no job of table1 is in the store; run it first: jigclu run table1"),
        (["cancel"], "name a job, an experiment or all"),
        (["retry", "--jobs", "0"], "--jobs must be at least 1, not 0"),
    ],
)
def test_mistakes_are_one_line(finished: Path, words: list[str], message: str) -> None:
    code, said = orchestrate(finished, *words)
    assert code == 2 and said.startswith(f"orchestrate {words[0]}: ") and said.count("\n") == 1 and message in said, (
        said
    )


def test_without_a_store_the_verbs_say_so(tmp_path: Path) -> None:
    code, said = orchestrate(tmp_path / "nowhere", "status")
    assert code == 2 and "there is no store at" in said and said.count("\n") == 1


def test_cancel_stops_a_local_job_and_retry_resumes_it(tmp_path: Path, template: Path) -> None:
    store = store_with_only(tmp_path, template, PRETRAIN, PROBE, pretrain__epochs=25)
    orchestrator = start(store, table8(pretrain__epochs=25))
    job = named(store, PRETRAIN)
    until_step(job, 2)
    code, said = orchestrate(store, "cancel", job.id)
    assert code == 0 and "cancelled: 1 running job (saved at the next step)" in said, said
    orchestrator.communicate()
    assert (
        orchestrator.returncode == 1 and state_of(job) == "interrupted" and "stopped at step" in job.status["message"]
    )
    code, said = orchestrate(store, "retry")
    assert code == 0 and f"done     {job.id}" in said, said
    assert named(store, PROBE).done and len(job.status["attempts"]) == 2
    assert_bit_equal(job, tmp_path)
    code, said = orchestrate(store, "retry")
    assert code == 0 and "nothing to retry" in said
    code, said = orchestrate(store, "cancel", "all")
    assert code == 0 and "nothing to cancel" in said


def test_a_job_planned_by_a_different_code_version_is_not_retried(finished: Path) -> None:
    job = named(finished, PROBE)
    (job.path / "result.json").unlink()
    job.set_status("failed", message="x")
    job.update_job(config={**job.job["config"], "epochs": 3})
    code, said = orchestrate(finished, "retry", job.id)
    assert (
        code == 2
        and f"job {job.id} was planned by a different code version; run its command: jigclu run table8" in said
    ), said


def test_clean_removes_what_nothing_needs_and_nothing_else(finished: Path) -> None:
    before = {path for path in finished.rglob("*") if ".mirror" not in path.parts}
    assert clean.unneeded(finished) == []
    old = time.time() - 7200
    tree = finished / "source" / "aaaaaaaaaaaa"
    tree.mkdir()
    forgotten = JobFolder(finished / "linear" / "0123456789ab").create()
    forgotten.update_job(stage="linear", name="linear of an old recipe", upstream=[], uses=[], experiments=["table8"])
    forgotten.write_result({"top1": 1.0})
    group = submissions.submissions_folder(finished) / "20260101-000000-abcdef"
    group.mkdir(parents=True)
    torn = named(finished, PROBE).path / ".result.json.77.tmp"
    checkpoint = named(finished, PROBE).path / "checkpoint" / "step-000000004.pt"
    for path in (torn, checkpoint):
        path.write_text("half")
    (forgotten.path / ".status.json.79.tmp").write_text("removed together with its folder")
    (tree.with_name("bbbbbbbbbbbb")).mkdir()  # young: an orchestrator may be about to submit from it
    for path in (torn, checkpoint, tree, forgotten.path / ".status.json.79.tmp"):
        os.utime(path, (old, old))
    young = named(finished, PROBE).path / ".status.json.78.tmp"
    young.write_text("still being written")
    code, said = orchestrate(finished, "clean")
    assert (
        code == 0 and "5 can be removed: `clean --yes` does it" in said and "linear of an old recipe: no cell" in said
    ), said
    assert forgotten.path.exists() and tree.exists() and group.exists() and torn.exists() and checkpoint.exists()
    code, said = orchestrate(finished, "clean", "--yes")
    assert code == 0 and "5 removed" in said, said
    young.unlink()
    (tree.with_name("bbbbbbbbbbbb")).rmdir()
    left = {path for path in finished.rglob("*") if ".mirror" not in path.parts} - {
        submissions.submissions_folder(finished)
    }
    assert left - before <= {finished / ".submit.lock"} and before <= left
    code, said = orchestrate(finished, "clean")
    assert "nothing to clean" in said


def test_clean_keeps_the_submission_and_the_tree_of_an_unfinished_job(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job in the queue has no source link yet: its submission and the tree named in the script must stay."""
    program(finished.parent / "bin", "squeue", "exit 1")
    program(finished.parent / "bin", "sacct", "true")
    program(finished.parent / "bin", "scontrol", "echo 'Invalid job id specified' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{finished.parent / 'bin'}:/usr/bin:/bin")
    job = named(finished, PROBE)
    (job.path / "result.json").unlink()
    (job.path / "source").unlink()
    for other in jobs(finished):
        (other.path / "source").unlink(missing_ok=True)
    (tree,) = (finished / "source").iterdir()
    group = submissions.submissions_folder(finished) / "20260101-000000-abcdef"
    group.mkdir(parents=True)
    (group / "submission.sh").write_text(f"export PYTHONPATH={tree}\n")
    submissions.note_group(finished, group.name, jobs=[job.id], name="", slurm_id="1")
    submissions.note_submission(job, cluster="slurm", site="slurm", group=group.name, index=0, submitted=time.time())
    with pytest.raises(ConfigError, match="SLURM does not answer, so nothing is cleaned"):
        clean.unneeded(finished)
    program(finished.parent / "bin", "squeue", "true")
    assert clean.unneeded(finished) == []
    submissions.note_submission(job, cluster="local")
    os.utime(tree, (0, 0))
    assert {path for path, _ in clean.unneeded(finished)} == {group, tree}


def test_a_broken_pipe_is_no_error(finished: Path) -> None:
    command = f"{sys.executable} -m orchestrate status --all | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, env=environment(finished), capture_output=True, text=True
    )
    assert done.returncode in (0, 128 + signal.SIGPIPE) and done.stderr == "" and done.stdout.startswith("done ")
