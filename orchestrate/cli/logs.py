"""`logs JOB`: print or follow the log files of a job."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.job_folder import JobFolder
from orchestrate.cli.select import select_one
from orchestrate.console import print_line
from orchestrate.jobs.states import ACTIVE, look
from orchestrate.jobs.submissions import batch_logs

FOLLOW_SECONDS = 3


def logs(store: Path, word: str, follow: bool) -> int:
    """Print the job's logs, oldest first, each after its path; with `follow`, the newest one as it grows."""
    folder = select_one(store, word)
    paths = log_paths(folder)
    if not paths:
        state = look([folder])[folder.id]
        raise ConfigError(f"{folder.id} has no log: it is {state.name}  {state.note}".rstrip())
    if follow:
        return _follow(folder, paths[-1])
    for path in paths:
        print_line(f"==> {path} <==")
        sys.stdout.write(path.read_text(errors="replace"))
    sys.stdout.flush()
    return 0


def _follow(folder: JobFolder, path: Path) -> int:
    """tail -F until the job is no longer active."""
    print_line(f"==> {path} <==")
    tail = subprocess.Popen(["tail", "-n", "100", "-F", str(path)])
    try:
        while look([folder])[folder.id].name in ACTIVE and tail.poll() is None:
            time.sleep(FOLLOW_SECONDS)
        time.sleep(1)  # for its last lines
        return 0
    finally:
        tail.terminate()
        tail.wait()


def log_paths(folder: JobFolder) -> list[Path]:
    """Rank 0's log (every rank's if the job is not done) and the batch script's, oldest first; no empty files."""
    rank = "0" if folder.done else "*"
    paths = [*folder.path.glob(f"logs/*_{rank}_log.out"), *folder.path.glob(f"logs/*_{rank}_log.err")]
    paths += batch_logs(folder)
    return sorted(
        (path for path in paths if path.is_file() and path.stat().st_size), key=lambda path: path.stat().st_mtime
    )
