"""Real orchestrators on stores of their own, for the tests of planning and running."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jigclu.files import locked
from jigclu.job_folder import JobFolder
from orchestrate.mirror.address import digest

ROOT = Path(__file__).resolve().parents[2]
# 20 steps per pretraining, 4 per probe. One thread, since tests share the machine; every step is logged, since tests
# stop at a step.
TINY: dict[str, Any] = {
    "pretrain.data.train_images": 50, "pretrain.data.val_images": 20, "pretrain.data.canvas": 32,
    "pretrain.image_size": 32, "pretrain.batch_size": 10, "pretrain.epochs": 4, "pretrain.precision": "float32",
    "pretrain.runtime.threads": 1, "pretrain.runtime.workers": 0, "pretrain.runtime.log_every": 1,
    "linear.data.train_images": 40, "linear.data.val_images": 20, "linear.data.canvas": 32,
    "linear.image_size": 32, "linear.resize": 36, "linear.batch_size": 20, "linear.epochs": 2,
    "linear.milestones": [0.5], "linear.precision": "float32",
    "linear.runtime.threads": 1, "linear.runtime.workers": 0,
}  # fmt: skip


def table8(**settings: Any) -> list[str]:
    """Arguments of run.py for a tiny Table 8 on this machine; `__` in a setting's name stands for a dot."""
    values = TINY | {name.replace("__", "."): value for name, value in settings.items()}
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["table8", "--scale", "smoke", "--cluster", "local", *sets]


PRETRAIN, PROBE = "pretrain resnet10 textures m=2 seed 0", "linear resnet10 textures m=2 seed 0"
RANDOM = "linear resnet10 textures random init seed 0"


def environment(store: Path, **more: str) -> dict[str, str]:
    """This process's, without variables of the suite; and no GPU, so that results are the same on every machine.

    The locks of cores are the test's own: other runs on this machine are no business of a test.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JIGCLU_", "MLFLOW_", "SLURM_"))}
    own = {"JIGCLU_STORE": str(store), "JIGCLU_DATA": str(store.parent / "no data"), "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **own, "OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(store.parent / ".runtime"), **more}


def start(store: Path, words: Iterable[str], **more: str) -> subprocess.Popen[str]:
    """run.py as in a terminal of its own: in its own session, not ignoring Ctrl-C as after a shell's `&`."""
    command = [sys.executable, str(ROOT / "orchestrate" / "run.py"), *words]
    return subprocess.Popen(
        command,
        cwd=store.parent,
        env=environment(store, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(store: Path, words: Iterable[str], cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "orchestrate" / "run.py"), *words]
    return subprocess.run(
        command, cwd=cwd or store.parent, env=environment(store, **more), capture_output=True, text=True
    )


def refused(store: Path, words: Iterable[str], *messages: str, cwd: Path | None = None, **more: str) -> None:
    """run.py reports a user's mistake: exit code 2, nothing on stdout, one line on stderr with all these messages."""
    done = run(store, words, cwd, **more)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    assert done.stderr.startswith("run.py: ") and done.stderr.count("\n") == 1, done.stderr
    assert not [message for message in messages if message not in done.stderr], done.stderr


def cpu_seconds() -> float:
    """CPU time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepared_store(path: Path, template: Path) -> Path:
    """A store with a migrated MLflow database, which saves an orchestrator seconds."""
    path.mkdir(mode=0o700)
    shutil.copy(template, path / "mlflow.db")
    marker = path / ".mirror" / digest(f"sqlite:///{path}/mlflow.db") / "prepared"
    marker.parent.mkdir(parents=True)
    shutil.copy(next(template.parent.glob(".mirror/*/prepared")), marker)
    return path


@functools.cache
def whole_table(template: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The store of a whole tiny Table 8 and how its run ended; made once for all workers, for tests that only read it."""
    folder = template.parents[2 if "PYTEST_XDIST_WORKER" in os.environ else 1]
    store, ended = folder / "whole-table", folder / "whole-table.json"
    with locked(folder / "whole-table.lock"):
        if not ended.exists():
            done = run(prepared_store(store, template), table8())
            ended.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
    return store, subprocess.CompletedProcess(*json.loads(ended.read_text()))


def borrow(whole: Path, store: Path, *, but: Iterable[str]) -> None:
    """Copy the finished jobs of the whole table, except those named in `but`, which are left to run."""
    left = set(but)
    for job in jobs(whole):
        if job.job["name"] in left:
            left.remove(job.job["name"])
        else:
            shutil.copytree(job.path, store / job.path.relative_to(whole), symlinks=True)
    assert not left, left


def named(store: Path, name: str) -> JobFolder:
    (job,) = [job for job in jobs(store) if job.job["name"] == name]
    return job


def jobs(store: Path, stage: str = "*") -> list[JobFolder]:
    return [JobFolder(path.parent) for path in sorted(store.glob(f"{stage}/*/job.json"))]


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until the process has stopped: of two signals that wait, the one with the lower number wins."""
    os.kill(pid, signal.SIGSTOP)
    while "\nState:\tT" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.005)


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
