"""Jobs on this machine: walk the graph, upstream first, as many at a time as there are GPUs, or as were asked for."""

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
from orchestrate.clusters import Request, visible_gpus
from orchestrate.console import print_line
from orchestrate.cost.measured import Measured
from orchestrate.jobs.snapshot import freeze, job_environment
from orchestrate.jobs.states import IN_HAND, progress, running_now, state_of
from orchestrate.jobs.submissions import note_submission, submission
from orchestrate.mirror.background import mirroring
from orchestrate.planning.plan import Job, Plan
from orchestrate.worker import run_job

POLL_SECONDS, PLAIN_SECONDS = 0.5, 30.0


@dataclass
class Running:
    """A job that this orchestrator started: its submitit handle and the slot that it holds."""

    job: Job
    handle: Any
    slot: int


class Slots:
    """One slot a GPU (without any: `jobs` in all), held by a lock, so that two orchestrators share them too."""

    def __init__(self, store: Path, jobs: int = 1):
        self.gpus = visible_gpus()
        self.count = len(self.gpus) or jobs
        self._folder, self._held = store / ".slots", dict[int, Any]()
        self._folder.mkdir(parents=True, exist_ok=True)

    def take(self) -> int | None:
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
        """CPU threads of one job: jobs at once divide the cores between them."""
        return max(1, len(os.sched_getaffinity(0)) // self.count)


class LocalScheduler:
    """One pass over a plan's graph until nothing more can run."""

    def __init__(self, plan: Plan, store: Path, jobs: int = 1):
        self.plan, self.store, self.slots = plan, store, Slots(store, jobs)
        self.tree = freeze(store)
        self.running: dict[str, Running] = {}
        self.settled: dict[str, str] = {}  # job id -> done | failed | skipped
        self.elsewhere: set[str] = set()
        self._printed = 0.0

    def run(self) -> int:
        """0: every job done; 1: some failed. KeyboardInterrupt passes through, with the children stopped and saved."""
        # `kill` stops a walk as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with mirroring(self.store):
            try:
                while len(self.settled) < len(self.plan.jobs):
                    self._collect()
                    self._start_ready()
                    self._show()
                    time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                self._stop()
                raise
        return 1 if any(state != "done" for state in self.settled.values()) else 0

    def _collect(self) -> None:
        for job_id, running in list(self.running.items()):
            if running.handle.done():
                del self.running[job_id]
                self.slots.give_back(running.slot)
                self._settle(running.job, ran=True)

    def _settle(self, job: Job, ran: bool) -> None:
        folder = job.folder(self.store)
        status, result = folder.status, folder.result
        if folder.done:
            self.settled[job.id] = "done"
            if ran:
                told = "  ".join(
                    f"{name} {value:.2f}" for name, value in result["metrics"].items() if name in ("top1", "ap", "loss")
                )
                print_line(f"{_now()} done     {job.id}  {job.name}  in {clock(result.get('seconds', 0))}  {told}")
            return
        if running_now(folder):  # only submitit's controller died
            self.elsewhere.add(job.id)
            return
        self.settled[job.id] = "failed"
        if status.get("state") in ("running", "pending"):  # died without a word: killed, or out of memory
            folder.set_status("interrupted", message="the process ended without a result")
            status = folder.status
        print_line(
            f"{_now()} {status['state']:8s} {job.id}  {job.name}: {status.get('message', '')}  (log: {folder.path / 'logs'})"
        )

    def _start_ready(self) -> None:
        for job in self.plan.jobs.values():
            if job.id in self.settled or job.id in self.running:
                continue
            upstream = [self.settled.get(job_id) for job_id in job.upstream]
            if any(state in ("failed", "skipped") for state in upstream):
                self.settled[job.id] = "skipped"
                print_line(f"{_now()} skipped  {job.id}  {job.name}: what it builds on did not finish")
            elif all(state == "done" for state in upstream):
                self._start(job)

    def _start(self, job: Job) -> None:
        """Start the job here, unless it is done, somebody else runs it, or no slot is free."""
        folder = job.folder(self.store)
        with locked(self.store / ".submit.lock"):
            state = state_of(folder)
            if state == "done":
                return self._settle(job, ran=job.id in self.elsewhere)
            if state in IN_HAND or _controller_lives(folder):
                if job.id not in self.elsewhere:
                    print_line(
                        f"{_now()} waits    {job.id}  {job.name}: it runs already, started by another orchestrator"
                    )
                self.elsewhere.add(job.id)
                return
            if job.id in self.elsewhere and state == "failed":
                self.elsewhere.discard(job.id)
                return self._settle(job, ran=False)
            self.elsewhere.discard(job.id)
            # A job whose orchestrator was killed holds no slot any more, but it runs.
            free = self.slots.count - len(self.running) - len(self.elsewhere)
            slot = self.slots.take() if free > 0 else None
            if slot is None:
                return
            handle = self._submit(job, folder, slot)
            self.running[job.id] = Running(job, handle, slot)  # at once: a Ctrl-C from here on must find it
            estimate = Measured(self.store, "local").note(job, Request(gpus_per_task=1 if self.slots.gpus else 0))
            where: dict[str, Any] = {
                "cluster": "local",
                "site": "local",
                "host": os.uname().nodename,
                "walk": os.getpid(),
            }
            note_submission(folder, **where, pid=int(handle.job_id), submitted=time.time(), **estimate)
        print_line(f"{_now()} {'resume' if state == 'interrupted' else 'start':8s} {job.id}  {job.name}")

    def _submit(self, job: Job, folder: JobFolder, slot: int) -> Any:
        """submitit starts a controller that outlives us. It must not see the terminal's Ctrl-C, which would have it kill
        its job after a second: ignored signals are inherited, and the worker sets its own handlers."""
        keep = (
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if threading.current_thread() is threading.main_thread()
            else None
        )
        before = dict(os.environ)
        os.environ.update(job_environment(self.tree))
        os.environ.setdefault("JIGCLU_THREADS", str(self.slots.threads))
        # Threads that wait for one another must not burn the cores that another process needs: on a shared machine that costs all.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            return local_executor(folder.path / "logs", self.slots.gpu(slot)).submit(run_job, str(folder.path))
        finally:
            os.environ.clear()
            os.environ.update(before)
            if keep is not None:
                signal.signal(signal.SIGINT, keep)

    def _stop(self) -> None:
        """Ask the children to save and stop; a second Ctrl-C ends them at once. Either way the next run goes on from there."""
        try:
            print_line(
                f"\n{_now()} stopping: {len(self.running)} running job(s) save at the next step (Ctrl-C again: at once)"
            )
            for running in self.running.values():
                running.handle._process.send_signal(signal.SIGTERM)
            for running in self.running.values():
                running.handle._process.wait()
        except KeyboardInterrupt:
            for running in self.running.values():
                for pid in (*_children(running.handle._process.pid), running.handle._process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _show(self) -> None:
        """On a terminal one line that moves; elsewhere a plain line now and then."""
        terminal, now = sys.stdout.isatty(), time.monotonic()
        if not self.running or now - self._printed < (POLL_SECONDS if terminal else PLAIN_SECONDS):
            return
        self._printed = now
        done = sum(state == "done" for state in self.settled.values())
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
    """Whether the submitit controller that was last started for the job is still there (it may not have reached the lock yet)."""
    asked = submission(folder)
    if asked.get("cluster") != "local" or asked.get("host") != os.uname().nodename:
        return False
    try:
        return b"submitit" in Path(f"/proc/{asked['pid']}/cmdline").read_bytes()
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    """Processes that a process has started and not yet seen end."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


NO_LIMIT = 60 * 24 * 365  # minutes; submitit's local executor wants a number


def local_executor(logs: Path, gpu: int | None) -> Any:
    """A submitit executor for one job on this machine, on one GPU or none."""
    import submitit

    executor = submitit.LocalExecutor(folder=logs)
    executor.update_parameters(
        timeout_min=NO_LIMIT,
        tasks_per_node=1,
        gpus_per_node=0 if gpu is None else 1,
        visible_gpus=[] if gpu is None else [gpu],
        stderr_to_stdout=True,
    )
    return executor
