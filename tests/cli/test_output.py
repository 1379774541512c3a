"""A terminal that is closed, a reader that leaves and a full disk change what is shown, never what is done."""

from __future__ import annotations

import errno
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cluster import cluster_file
from helpers.orchestrator import ROOT, environment, jobs, prepared_store, program, table8

from jigclu.files import write_atomic
from jigclu_cli.arguments import file_problem
from orchestrate.jobs.submissions import submission

PYTHON = shlex.quote(sys.executable)


def shell(store: Path, command: str, redirections: str, **more: str) -> subprocess.CompletedProcess[str]:
    line = f"set -o pipefail; {PYTHON} {command} {redirections}"
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment(store, **more), capture_output=True, text=True
    )


@pytest.fixture
def slurm(tmp_path: Path) -> str:
    """A PATH on which every sbatch succeeds and squeue lists nothing."""
    program(tmp_path / "bin", "sbatch", f"echo x >> {tmp_path}/calls; expr 100 + $(wc -l < {tmp_path}/calls)")
    for name in ("squeue", "sacct", "scancel"):
        program(tmp_path / "bin", name, "true")
    program(tmp_path / "bin", "scontrol", "echo 'Invalid job id specified' >&2; exit 1")
    return f"{tmp_path / 'bin'}:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("redirections", "code", "message"),
    [
        ("| (sleep 1; exec <&-)", 0, ""),
        ("| head -1", 0, "submitted"),
        ("> /dev/full", 1, "run.py: its output could not be written (No space left on device); the work is done\n"),
        ("2>&1 > /dev/full", 1, "No space left on device"),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_all_jobs_are_submitted_whatever_the_output_is(
    tmp_path: Path, template: Path, slurm: str, redirections: str, code: int, message: str
) -> None:
    store = prepared_store(tmp_path / "runs", template)
    words = [*table8(), "--cluster", str(cluster_file(tmp_path))]
    done = shell(store, f"orchestrate/run.py {shlex.join(words)}", redirections, PATH=slurm)
    assert done.returncode == code and "Traceback" not in done.stderr, done
    assert message in done.stdout + done.stderr and (done.stdout + done.stderr).count("\n") <= 1, done
    assert len(jobs(store)) == 7 and all(submission(job).get("group") for job in jobs(store))


@pytest.mark.parametrize("command", ["-m orchestrate status", "-m orchestrate clean", "-m orchestrate sync"])
def test_verbs_say_in_one_line_that_their_output_is_lost(tmp_path: Path, template: Path, command: str) -> None:
    store = prepared_store(tmp_path / "runs", template)
    done = shell(store, command, "> /dev/full")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert "could not be written (No space left on device)" in done.stderr
    done = shell(store, command, "<&- >&- 2>&-")
    assert done.returncode == 0, done


@pytest.mark.parametrize("command", ["-m jigclu_cli", "-m jigclu_cli run --help", "-m jigclu.data check scenes"])
def test_every_door_survives_a_full_disk(tmp_path: Path, command: str) -> None:
    done = shell(tmp_path / "runs", command, "> /dev/full")
    assert done.returncode in (1, 2, 0) and "Traceback" not in done.stderr and "Exception" not in done.stderr, done


def test_a_write_that_fails_names_its_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as a full disk: the system refuses in write()
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_atomic(path, b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file_problem(error.value) == f"{path}: File too large"
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"] and path.read_text() == "old"


def test_an_error_of_the_system_without_a_file_is_shown_in_its_words() -> None:
    assert file_problem(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    with pytest.raises(OSError, match="something else"):
        file_problem(OSError("something else"))
