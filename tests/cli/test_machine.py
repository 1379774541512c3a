"""One machine's cores: two runs share them, threads never exceed them, and lines say so."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.cluster import until
from helpers.orchestrator import RANDOM, environment, freeze, named, prepared_store, run, start, table8

from jigclu.config import ConfigError
from jigclu.config.machine import threads_from_environment, usable_cores
from jigclu.files import Shares, runtime_folder
from orchestrate.jobs.slots import Slots

ONE = ["--cells", "random"]  # one job
UNSET = {"pretrain__runtime__threads": None, "linear__runtime__threads": None}


def threads_of(job: Any) -> int:
    found = re.search(r", (\d+) threads$", job.result["device"])
    assert found
    return int(found[1])


def test_two_runs_on_two_stores_do_not_use_the_same_cores(tmp_path: Path, template: Path) -> None:
    stores = [prepared_store(tmp_path / name, template) for name in ("first", "second")]
    first = start(stores[0], [*table8(**UNSET), *ONE])
    until(lambda: list(stores[0].glob("linear/*/job.json")))
    job = named(stores[0], RANDOM)
    until(lambda: job.status.get("state") == "running")
    freeze(job.status["pid"])  # so that it is still running when the second looks
    held = {name: json.loads((tmp_path / ".runtime" / "jigclu" / name).read_text()) for name in cores()}
    assert {holder["store"] for holder in held.values()} == {str(stores[0])}
    second = start(stores[1], [*table8(**UNSET), *ONE])
    assert second.stdout
    line = ""
    while "the cores are in use by" not in line:
        line = second.stdout.readline()
        assert line, "it ended without a word"
    assert f"the cores are in use by process {first.pid} (store {stores[0]})" in line
    assert not named(stores[1], RANDOM).status.get("attempts")
    os.kill(job.status["pid"], signal.SIGCONT)
    outputs = [first.communicate()[0], second.communicate()[0]]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    spans = sorted(
        (attempt["began"], attempt["ended"])
        for store in stores
        for job in (named(store, RANDOM),)
        for attempt in job.status["attempts"]
    )
    assert spans[0][1] <= spans[1][0], "they ran at the same time, each with all cores"


def cores() -> list[str]:
    return [f"core{core}" for core in usable_cores()]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_jobs_at_once_share_the_cores_and_too_many_are_refused_in_words(tmp_path: Path, template: Path) -> None:
    store, count = prepared_store(tmp_path / "runs", template), len(usable_cores())
    words = [*table8(**UNSET), "--jobs", "99", *ONE]
    done = run(store, words, JIGCLU_THREADS="64", OMP_NUM_THREADS="64")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"--jobs 99: {count} at a time, because this process may use {count} cores" in done.stdout
    assert f"JIGCLU_THREADS=64: each job uses 1 thread, because this process may use {count} cores" in done.stdout
    assert threads_of(named(store, RANDOM)) == 1


THREADS = "import torch; from jigclu.training.distributed import join_ranks; join_ranks('cpu', {}); print(torch.get_num_threads())"


def asked(tmp_path: Path, threads: int | None = None, cpus: int = 1, **variables: str) -> tuple[int, str]:
    """(threads that a stage uses, its log) in a process that may use so many cores."""
    kept = ",".join(map(str, usable_cores()[:cpus]))
    env = environment(tmp_path / "runs", **variables)
    command = ["taskset", "-c", kept, sys.executable, "-c", THREADS.format(threads)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return int(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("SLURM_CPUS_PER_TASK", {"SLURM_CPUS_PER_TASK": "8"}),
        ("JIGCLU_THREADS", {"JIGCLU_THREADS": "64", "OMP_NUM_THREADS": "64"}),
        ("runtime.threads", {}),
    ],
)
def test_a_stage_uses_no_more_threads_than_it_has_cores_and_says_so(
    name: str, variables: dict[str, str], tmp_path: Path
) -> None:
    found, log = asked(tmp_path, 8 if name == "runtime.threads" else None, **variables)
    assert found == 1 and log.count("\n") == 1 and log.startswith(f"{name} is ") and "1 usable core" in log, log


def test_ranks_on_one_machine_share_its_cores(tmp_path: Path) -> None:
    count = min(2, len(usable_cores()))
    code = "from jigclu.training.distributed import choose_threads as c; print(c())"
    env = environment(tmp_path / "runs", WORLD_SIZE="4", LOCAL_WORLD_SIZE="2")
    kept = ",".join(map(str, usable_cores()[:count]))
    done = subprocess.run(
        ["taskset", "-c", kept, sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=Path.cwd()
    )
    assert done.stdout == "1\n" and done.stderr == "", done.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_three_tasks_of_an_overdeclared_node_do_not_each_take_all_its_cores(tmp_path: Path) -> None:
    """A node that declares 24 CPUs and has 2: three jobs of 8 CPUs each once had 24 threads."""
    code = "from jigclu.training.distributed import choose_threads as c; print(c(), flush=True); input()"
    env = environment(tmp_path / "runs", SLURM_CPUS_PER_TASK="8")
    command = ["taskset", "-c", ",".join(map(str, usable_cores()[:2])), sys.executable, "-c", code]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    tasks = [subprocess.Popen(command, env=env, text=True, cwd=Path.cwd(), **pipes) for _ in range(3)]
    found = [int(task.stdout.readline()) for task in tasks]  # type: ignore[union-attr]
    for task in tasks:
        task.communicate("\n")
    assert sum(found) <= 4 and min(found) == 1, found


def test_a_wrong_number_of_threads_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("abc", "0", "-1", "2.5"):
        monkeypatch.setenv("JIGCLU_THREADS", word)
        with pytest.raises(ConfigError, match=rf"JIGCLU_THREADS={re.escape(word)}: give a whole number of CPU threads"):
            threads_from_environment()


def test_lock_files_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = runtime_folder()
    assert folder == tmp_path / "jigclu" and folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    (tmp_path / "other").mkdir()
    folder.symlink_to(tmp_path / "other")  # in /tmp anybody may have put it there
    assert runtime_folder() != folder


def test_without_a_folder_for_locks_the_store_has_them_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrate.jobs.slots.runtime_folder", lambda: None)
    slots = Slots(tmp_path, [], jobs=1)
    assert slots.take() and not slots.take()
    assert slots.remarks() == ["no folder for this machine's locks: runs on other stores may use the same cores"]


def test_a_gpu_is_taken_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    first, second = Slots(tmp_path / "a", [0, 1], 2), Slots(tmp_path / "b", [1], 2)
    taken = [first.take(), first.take()]
    assert [slot and slot.gpu for slot in taken] == [0, 1] and second.take() is None
    assert second.other_run() == f"process {os.getpid()} (store {tmp_path / 'a'})"
    assert taken[1]
    first.give_back(taken[1])
    got = second.take()
    assert got and got.gpu == 1 and got.threads == max(1, len(usable_cores()) // 2)


def test_the_cores_of_a_job_whose_orchestrator_was_killed_stay_taken(tmp_path: Path) -> None:
    names, job = ["core0"], subprocess.Popen(["sleep", "60"], executable="/bin/sleep")
    try:
        shares = Shares(tmp_path)
        assert shares.take(names)
        shares.note(names, orchestrator=1, job=job.pid, store="x")
        shares._held.pop("core0").close()  # as the kernel does when the orchestrator dies
        assert Shares(tmp_path).take(
            names
        )  # its process is none of submitit's: the number was given to another program
    finally:
        job.kill()
        job.wait()
    script = tmp_path / "submitit"
    script.write_text("import time; time.sleep(60)")
    job = subprocess.Popen([sys.executable, str(script)])
    try:
        until(lambda: b"submitit" in Path(f"/proc/{job.pid}/cmdline").read_bytes())
        (tmp_path / "core0").write_text(json.dumps({"orchestrator": 1, "job": job.pid, "store": "x"}))
        assert not Shares(tmp_path).take(names)
    finally:
        job.kill()
        job.wait()
    assert Shares(tmp_path).take(names)
