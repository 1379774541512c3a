"""Jobs on this machine: upstream first, one job per GPU at a time; without GPUs as many at a time as `--jobs` says."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigclu.files import locked
from jigclu.job_folder import JobFolder, clock
from orchestrate import submitit_bridge
from orchestrate.clusters import Request, visible_gpus
from orchestrate.console import print_line
from orchestrate.cost.measured import Measured
from orchestrate.jobs.snapshot import freeze, job_environment
from orchestrate.jobs.states import ACTIVE, headline, progress, running_now, state_of
from orchestrate.jobs.submissions import note_submission, submission
from orchestrate.mirror.background import mirroring
from orchestrate.planning.plan import Job, Plan
from orchestrate.worker import run_job

POLL_SECONDS, PLAIN_SECONDS = 0.5, 30.0  # PLAIN_SECONDS: between progress lines if the output is no terminal
NO_LIMIT = 60 * 24 * 365  # minutes; submitit's local executor needs a number


@dataclass
class Running:
    """A job that this orchestrator started: its submitit handle and its slot."""

    job: Job
    handle: Any
    slot: int


class Slots:
    """One slot per GPU (without GPUs: `jobs` slots). A slot is a file lock, so that two orchestrators share them."""

    def __init__(self, store: Path, jobs: int = 1):
        self.gpus = visible_gpus()
        self.count = len(self.gpus) or jobs
        self._folder, self._held = store / ".slots", dict[int, Any]()
        self._folder.mkdir(parents=True, exist_ok=True)

    def take(self) -> int | None:
        """Index of a slot that was free and is now locked; None if all are taken."""
        for slot in range(self.count):
            if slot in self._held:
                continue
            name = self.gpus[slot] if self.gpus else f"cpu{slot}"
            file = open(self._folder / f"{os.uname().nodename}-{name}", "a")  # noqa: SIM115  held until given back
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            self._held[slot] = file
            return slot
        return None

    def give_back(self, slot: int) -> None:
        self._held.pop(slot).close()

    def gpu(self, slot: int) -> int | None:
        return self.gpus[slot] if self.gpus else None

    @property
    def threads(self) -> int:
        """CPU threads of one job: the slots share the cores evenly."""
        return max(1, len(os.sched_getaffinity(0)) // self.count)


class LocalScheduler:
    """Runs a plan's jobs here until none of them can run any more."""

    def __init__(self, plan: Plan, store: Path, jobs: int = 1):
        self.plan, self.store, self.slots = plan, store, Slots(store, jobs)
        self.tree = freeze(store)
        self.running: dict[str, Running] = {}
        self.outcomes: dict[str, str] = {}  # job id -> done | failed | skipped
        self.elsewhere: set[str] = set()  # ids of jobs that another orchestrator started
        self._printed = 0.0

    def run(self) -> int:
        """0: every job is done; 1: some failed.

        On KeyboardInterrupt (also from SIGTERM) the jobs save and stop, then it is raised.
        """
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with mirroring(self.store):
            try:
                while len(self.outcomes) < len(self.plan.jobs):
                    self._collect()
                    self._start_ready()
                    self._show()
                    time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                self._stop()
                raise
        return 1 if any(state != "done" for state in self.outcomes.values()) else 0

    def _collect(self) -> None:
        for job_id, running in list(self.running.items()):
            if running.handle.done():
                del self.running[job_id]
                self.slots.give_back(running.slot)
                self._record_outcome(running.job, ran=True)

    def _record_outcome(self, job: Job, ran: bool) -> None:
        folder = job.folder(self.store)
        status, result = folder.status, folder.result
        if folder.done:
            self.outcomes[job.id] = "done"
            if ran:
                took = clock(result.get("seconds", 0))
                print_line(f"{_now()} done     {job.id}  {job.name}  in {took}  {headline(result)}")
            return
        if running_now(folder):  # only submitit's controller process died
            self.elsewhere.add(job.id)
            return
        self.outcomes[job.id] = "failed"
        if status.get("state") in ("running", "pending"):  # killed, or out of memory: it could not record why
            folder.set_status("interrupted", message="the process ended without a result")
            status = folder.status
        state, message = status.get("state", "failed"), status.get("message", "")
        print_line(f"{_now()} {state:8s} {job.id}  {job.name}: {message}  (log: {folder.path / 'logs'})")

    def _start_ready(self) -> None:
        for job in self.plan.jobs.values():
            if job.id in self.outcomes or job.id in self.running:
                continue
            upstream = [self.outcomes.get(job_id) for job_id in job.upstream]
            if any(state in ("failed", "skipped") for state in upstream):
                self.outcomes[job.id] = "skipped"
                print_line(f"{_now()} skipped  {job.id}  {job.name}: upstream did not finish")
            elif all(state == "done" for state in upstream):
                self._start(job)

    def _start(self, job: Job) -> None:
        """Start the job here, unless it is done, another orchestrator runs it, or no slot is free."""
        folder = job.folder(self.store)
        with locked(self.store / ".submit.lock"):
            state = state_of(folder)
            if state == "done":
                return self._record_outcome(job, ran=job.id in self.elsewhere)
            if state in ACTIVE or _controller_lives(folder):
                if job.id not in self.elsewhere:
                    print_line(f"{_now()} waits    {job.id}  {job.name}: another orchestrator is already running it")
                self.elsewhere.add(job.id)
                return
            if job.id in self.elsewhere and state == "failed":
                self.elsewhere.discard(job.id)
                return self._record_outcome(job, ran=False)
            self.elsewhere.discard(job.id)
            # A running job whose orchestrator was killed has no lock on a slot any more, but still uses one.
            free = self.slots.count - len(self.running) - len(self.elsewhere)
            slot = self.slots.take() if free > 0 else None
            if slot is None:
                return
            handle = self._submit(job, folder, slot)
            self.running[job.id] = Running(
                job, handle, slot
            )  # before anything else: a Ctrl-C from here on must find it
            estimate = Measured(self.store, "local").note(job, Request(gpus_per_task=1 if self.slots.gpus else 0))
            note_submission(
                folder, cluster="local", site="local", host=os.uname().nodename, orchestrator_pid=os.getpid(),
                pid=int(handle.job_id), submitted=time.time(), **estimate,
            )  # fmt: skip
        print_line(f"{_now()} {'resume' if state == 'interrupted' else 'start':8s} {job.id}  {job.name}")

    def _submit(self, job: Job, folder: JobFolder, slot: int) -> Any:
        """Have submitit start a controller process for the job, which outlives this process.

        The controller must ignore the terminal's Ctrl-C, on which it would kill its job after a second. Ignored signals
        are inherited, and the worker sets its own handlers.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()  # only there handlers can be set
        previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
        before = dict(os.environ)
        os.environ.update(job_environment(self.tree))
        os.environ.setdefault("JIGCLU_THREADS", str(self.slots.threads))
        # Waiting threads must not spin on cores that other processes need: on a shared machine that slows everything
        # down.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            return local_executor(folder.path / "logs", self.slots.gpu(slot)).submit(run_job, str(folder.path))
        finally:
            os.environ.clear()
            os.environ.update(before)
            if previous_handler is not None:
                signal.signal(signal.SIGINT, previous_handler)

    def _stop(self) -> None:
        """Ask the jobs to save and stop; a second Ctrl-C kills them.

        Either way the next run resumes from the last checkpoint.
        """
        controllers = [submitit_bridge.controller(running.handle) for running in self.running.values()]
        try:
            count = len(controllers)
            print_line(f"\n{_now()} stopping: {count} running job(s) save at the next step (Ctrl-C again: kill them)")
            for process in controllers:
                process.send_signal(signal.SIGTERM)
            for process in controllers:
                process.wait()
        except KeyboardInterrupt:
            for process in controllers:
                for pid in (*_children(process.pid), process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _show(self) -> None:
        """On a terminal one line that is redrawn; otherwise a plain line every PLAIN_SECONDS."""
        terminal, now = sys.stdout.isatty(), time.monotonic()
        if not self.running or now - self._printed < (POLL_SECONDS if terminal else PLAIN_SECONDS):
            return
        self._printed = now
        done = sum(state == "done" for state in self.outcomes.values())
        parts = [f"{done}/{len(self.plan.jobs)} jobs done"]
        for running in self.running.values():
            parts.append(f"{running.job.stage} {running.job.label}: {progress(running.job.folder(self.store).status)}")
        line = "  |  ".join(parts)
        if terminal:
            print(f"\r{line[: os.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)
        else:
            print_line(f"{_now()} {line}")


def _now() -> str:
    return ("\r\x1b[K" if sys.stdout.isatty() else "") + time.strftime("%H:%M:%S")


def _controller_lives(folder: JobFolder) -> bool:
    """Whether the job's last submitit controller still runs (its worker may not have taken the job's lock yet)."""
    marker = submission(folder)
    if marker.get("cluster") != "local" or marker.get("host") != os.uname().nodename:
        return False
    try:
        return b"submitit" in Path(f"/proc/{marker['pid']}/cmdline").read_bytes()
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    """Ids of the running child processes of a process."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def local_executor(logs: Path, gpu: int | None) -> Any:
    """A submitit executor for one job on this machine, on one GPU or none."""
    import submitit

    submitit_bridge.check_local()
    executor = submitit.LocalExecutor(folder=logs)
    executor.update_parameters(
        timeout_min=NO_LIMIT,
        tasks_per_node=1,
        gpus_per_node=0 if gpu is None else 1,
        visible_gpus=[] if gpu is None else [gpu],
        stderr_to_stdout=True,
    )
    return executor
