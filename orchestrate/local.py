"""Jobs on this machine: upstream first, one job per GPU at a time; without GPUs as many at a time as `--jobs` says."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError
from jigclu.files import locked
from jigclu.job_folder import JobFolder, duration
from orchestrate import submitit_bridge
from orchestrate.clusters import Request, machine_gpus, visible_gpus
from orchestrate.console import is_terminal, print_line, quiet_interrupt, redraw
from orchestrate.cost.measured import Measured
from orchestrate.cost.remaining import Pace, in_words, seconds_left
from orchestrate.jobs.orchestrators import Registration
from orchestrate.jobs.slots import Slot, Slots
from orchestrate.jobs.snapshot import freeze, job_environment
from orchestrate.jobs.spent import seconds_spent, took
from orchestrate.jobs.states import ACTIVE, headline, progress, running_now, state_of
from orchestrate.jobs.submissions import note_submission, submission
from orchestrate.jobs.surroundings import without_launchers
from orchestrate.mirror.background import mirroring
from orchestrate.planning.plan import Job, Plan
from orchestrate.worker import run_job

POLL_SECONDS, PLAIN_SECONDS = 0.5, 30.0  # PLAIN_SECONDS: between progress lines if the output is no terminal
STOP_SECONDS = 90.0  # how long jobs may take to save if nobody is there to press Ctrl-C again
NO_LIMIT = 60 * 24 * 365  # minutes; submitit's local executor needs a number


@dataclass
class Running:
    """A job that this orchestrator started: its submitit handle and its slot. `stopping`: it was cancelled."""

    job: Job
    handle: Any
    slot: Slot
    stopping: bool = False


class LocalScheduler:
    """Runs a plan's jobs here until none of them can run any more."""

    def __init__(self, plan: Plan, store: Path, jobs: int = 1):
        gpus = visible_gpus()
        self.plan, self.store, self.slots = plan, store, Slots(store, gpus, machine_gpus() if gpus else 0, jobs)
        self.tree = freeze(store)
        self.registration = Registration(store, self.slots.count)
        self.running: dict[str, Running] = {}
        self.outcomes: dict[str, str] = {}  # job id -> done | failed | skipped | cancelled
        self.elsewhere: set[str] = set()  # ids of jobs that another orchestrator started
        self.estimates, self.pace = self._wall_estimates(), Pace()
        self._printed, self._said_busy = 0.0, False
        self._patience: float | None = None  # seconds that a stop waits for the jobs; None: until they have saved
        self._stopping, self._deadline = False, math.inf

    def run(self) -> int:
        """0: every job is done; 1: some failed or were cancelled.

        On KeyboardInterrupt (also from SIGTERM, and from SIGHUP of a closed terminal) the jobs save and stop, then it
        is raised.
        """
        signal.signal(signal.SIGTERM, self._stop_in_time)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            signal.signal(signal.SIGHUP, self._stop_in_time)
        for remark in self.slots.remarks():
            print_line(remark)
        with mirroring(self.store), self.registration, quiet_interrupt():
            try:
                while len(self.outcomes) < len(self.plan.jobs):
                    self._collect()
                    self._give_up_cancelled()
                    self._start_ready()
                    self.registration.note_jobs(self.plan.jobs.keys() - self.outcomes.keys())
                    self._show()
                    time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                self._stop()
                raise
            except FileNotFoundError:
                if self.registration.is_there:
                    raise
                raise ConfigError(f"the store {self.store} was moved or deleted while its jobs were running") from None
        if cancelled := sum(state == "cancelled" for state in self.outcomes.values()):
            print_line(f"{_now()} cancelled: {cancelled} of {len(self.plan.jobs)} jobs (`jigclu retry` resumes them)")
        return 1 if any(state != "done" for state in self.outcomes.values()) else 0

    def _stop_in_time(self, *_: object) -> None:
        """A stop by a program, or by a terminal that is gone. Systems send several signals: only the first interrupts."""
        asked, self._patience = self._patience is not None, STOP_SECONDS
        if self._stopping:
            self._deadline = min(self._deadline, time.monotonic() + STOP_SECONDS)
        elif not asked:
            raise KeyboardInterrupt

    def _collect(self) -> None:
        for job_id, running in list(self.running.items()):
            if running.handle.done():
                del self.running[job_id]
                self.slots.give_back(running.slot)
                self._record_outcome(running.job, ran=True)

    def _give_up_cancelled(self) -> None:
        """What `cancel` named: a running job saves and stops, any other does not start."""
        for job_id in self.registration.cancelled() & self.plan.jobs.keys() - self.outcomes.keys():
            job = self.plan.jobs[job_id]
            if job_id in self.running:
                if not self.running[job_id].stopping:
                    self.running[job_id].stopping = True
                    submitit_bridge.controller(self.running[job_id].handle).send_signal(signal.SIGTERM)
                continue
            self.outcomes[job_id] = "cancelled"
            print_line(f"{_now()} cancelled {job_id}  {job.name}")

    def _record_outcome(self, job: Job, ran: bool) -> None:
        folder = job.folder(self.store)
        if self._is_deleted(job):
            return
        status, result = folder.status, folder.result
        if result:
            self.outcomes[job.id] = "done"
            if ran:
                self.pace.add(job.stage, seconds_spent(folder), 3600 * self.estimates[job.id])
                print_line(f"{_now()} done     {job.id}  {job.name}  in {took(folder)}  {headline(result)}")
            return
        if running_now(folder):  # only submitit's controller process died
            self.elsewhere.add(job.id)
            return
        self.outcomes[job.id] = "cancelled" if job.id in self.registration.cancelled() else "failed"
        if status.get("state") in ("running", "pending"):  # killed, or out of memory: it could not record why
            folder.set_status("interrupted", message="the process ended without a result")
            status = folder.status
        state, message = status.get("state", "failed"), status.get("message", "")
        print_line(f"{_now()} {state:8s} {job.id}  {job.name}: {message}  (log: {folder.path / 'logs'})")

    def _is_deleted(self, job: Job) -> bool:
        """Whether somebody has removed the job's folder since the plan was written; if so, the job has failed."""
        folder = job.folder(self.store).path
        if (folder / "job.json").exists():
            return False
        self.outcomes[job.id] = "failed"
        print_line(
            f"{_now()} failed   {job.id}  {job.name}: its folder {folder} was deleted; the same command starts anew"
        )
        return True

    def _start_ready(self) -> None:
        for job in self.plan.jobs.values():
            if job.id in self.outcomes or job.id in self.running:
                continue
            upstream = [self.outcomes.get(job_id) for job_id in job.upstream]
            if any(state in ("failed", "skipped", "cancelled") for state in upstream):
                self.outcomes[job.id] = "skipped"
                print_line(f"{_now()} skipped  {job.id}  {job.name}: upstream did not finish")
            elif all(state == "done" for state in upstream):
                self._start(job)

    def _start(self, job: Job) -> None:
        """Start the job here, unless it is done, cancelled, run by another orchestrator, or no slot is free."""
        folder = job.folder(self.store)
        if self._is_deleted(job):
            return
        with locked(self.store / ".submit.lock"):
            state = state_of(folder)
            if state == "done":
                return self._record_outcome(job, ran=job.id in self.elsewhere)
            if state in ACTIVE or _controller_lives(folder):
                if job.id not in self.elsewhere:
                    print_line(f"{_now()} waits    {job.id}  {job.name}: another orchestrator is already running it")
                self.elsewhere.add(job.id)
                return
            if job.id in self.elsewhere and state in ("failed", "cancelled"):
                self.elsewhere.discard(job.id)
                return self._record_outcome(job, ran=False)
            self.elsewhere.discard(job.id)
            if job.id in self.registration.cancelled() or (slot := self._take_slot(job)) is None:
                return
            handle = self._submit(job, folder, slot)
            # Before anything else: a Ctrl-C from here on must find it.
            self.running[job.id] = Running(job, handle, slot)
            self.slots.note(slot, int(handle.job_id))
            request = Request(gpus_per_task=0 if slot.gpu is None else 1)
            estimate = Measured(self.store, "local").note(job, request, slot.share)
            note_submission(
                folder, cluster="local", site="local", host=os.uname().nodename, orchestrator_pid=os.getpid(),
                pid=int(handle.job_id), submitted=time.time(), **estimate,
            )  # fmt: skip
        print_line(f"{_now()} {'resume' if state == 'interrupted' else 'start':8s} {job.id}  {job.name}")

    def _take_slot(self, job: Job) -> Slot | None:
        """A slot; None, with a line the first time if the reason is another run on this machine."""
        # A running job whose orchestrator was killed has no lock of this process, but still uses a slot.
        if self.slots.count - len(self.running) - len(self.elsewhere) <= 0:
            return None
        slot, here = self.slots.take(), self.slots
        if slot is None and not self.running and not self._said_busy:
            what = "GPUs are" if here.gpus else "cores are"
            print_line(f"{_now()} waits    {job.id}  {job.name}: the {what} in use by {here.other_run()}")
        if slot and slot.gpu is None and slot.threads < here.threads:
            said = f"{slot.threads} of {here.threads} cores, because {here.other_run()} uses the others"
            print_line(f"{_now()} {job.id}  {job.name}: {said}")
        self._said_busy = slot is None
        return slot

    def _submit(self, job: Job, folder: JobFolder, slot: Slot) -> Any:
        """Have submitit start a controller process for the job, which outlives this process.

        The controller must ignore the terminal's Ctrl-C, on which it would kill its job after a second, and the
        terminal's end. Ignored signals are inherited; this process passes stops on.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()  # only there handlers can be set
        ignored = (signal.SIGINT, signal.SIGHUP) if in_main_thread else ()
        previous_handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(without_launchers(before) | job_environment(self.tree))
        # All the libraries that choose their threads by these; MKL and OpenBLAS read OMP_NUM_THREADS.
        os.environ |= {"JIGCLU_THREADS": str(slot.threads), "OMP_NUM_THREADS": str(slot.threads)}
        # Waiting threads must not spin on cores that other processes need: on a shared machine that slows everything
        # down.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            return local_executor(folder.path / "logs", slot.gpu).submit(run_job, str(folder.path))
        finally:
            os.environ.clear()
            os.environ.update(before)
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        """Ask the jobs to save and stop; a second Ctrl-C, or the end of the patience, kills them.

        Either way the next run resumes from the last checkpoint.
        """
        self._stopping = True
        self._deadline = math.inf if self._patience is None else time.monotonic() + self._patience
        controllers = {job_id: submitit_bridge.controller(running.handle) for job_id, running in self.running.items()}
        try:
            count = len(controllers)
            jobs = "1 running job saves" if count == 1 else f"{count} running jobs save"
            otherwise = "Ctrl-C again: kill" if self._patience is None else f"at most {duration(self._patience)}"
            print_line(f"{_now()} stopping: {jobs} at the next step ({otherwise})")
            for process in controllers.values():
                process.send_signal(signal.SIGTERM)
            while any(process.poll() is None for process in controllers.values()) and time.monotonic() < self._deadline:
                time.sleep(0.05)
        except KeyboardInterrupt:
            pass
        for job_id, process in controllers.items():
            if process.poll() is not None:
                continue
            if time.monotonic() >= self._deadline:
                name = self.plan.jobs[job_id].name
                print_line(f"{_now()} killed   {job_id}  {name}: it did not stop in {duration(STOP_SECONDS)}")
            for pid in (*_children(process.pid), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._stopping, self._patience = False, None  # what comes after may be interrupted

    def _show(self) -> None:
        """On a terminal one line that is redrawn; otherwise a plain line every PLAIN_SECONDS."""
        terminal, now = is_terminal(), time.monotonic()
        if not self.running or now - self._printed < (POLL_SECONDS if terminal else PLAIN_SECONDS):
            return
        self._printed = now
        line = "  |  ".join(self._parts())
        if terminal:
            redraw(line)
        else:
            print_line(f"{_now()} {line}")

    def _parts(self) -> Iterator[str]:
        """The time left first: it must not be cut."""
        yield in_words(self._seconds_left())
        done = sum(state == "done" for state in self.outcomes.values())
        yield f"{done} of {len(self.plan.jobs)} jobs done"
        for running in self.running.values():
            yield f"{running.job.stage} {running.job.label}: {progress(running.job.folder(self.store).status)}"

    def _seconds_left(self) -> float:
        """Until the last job of the plan has ended, at the pace of those that have ended in this run."""
        jobs = {job_id: job for job_id, job in self.plan.jobs.items() if job_id not in self.outcomes}
        active = jobs.keys() & {*self.running, *self.elsewhere}
        return seconds_left(
            {job_id: (self.estimates[job_id] * self.pace.of(job.stage), job.upstream) for job_id, job in jobs.items()},
            {job_id: jobs[job_id].folder(self.store).status for job_id in active},
            self.slots.count,
        )

    def _wall_estimates(self) -> dict[str, float]:
        """Job id -> hours from its start to its end."""
        measured, slots = Measured(self.store, "local"), self.slots
        kind, share = ("GPU", 1.0) if slots.gpus else ("CPU", slots.threads / len(slots.cores))
        return {job.id: measured.hours(job, kind, share)[0] / share for job in self.plan.jobs.values()}


def _now() -> str:
    return time.strftime("%H:%M:%S")


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
