"""Slots of a local run: one per GPU, else a part of the machine's cores. Shared with the user's other runs here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from jigclu.config.machine import core_names, threads_from_environment, usable_cores
from jigclu.files import Shares, runtime_folder


@dataclass(frozen=True)
class Slot:
    """What one job gets. `names`: its locks; `share`: of the machine, for a job on the CPU."""

    names: tuple[str, ...]
    gpu: int | None
    threads: int
    share: float


class Slots:
    """`count` jobs at once; every slot is locked for the whole machine, so that runs on two stores do not share cores.

    `gpus`: indices that this run may use; `machine_gpus`: how many there are. Without GPUs, `jobs` share the cores. A
    run that finds only some of its cores free takes those, from half of what a job should have.
    """

    def __init__(self, store: Path, gpus: list[int], machine_gpus: int = 0, jobs: int = 1):
        self.gpus, self.cores, self.jobs, self.store = gpus, usable_cores(), jobs, store
        self.count = len(gpus) or min(jobs, len(self.cores))
        most = max(1, len(self.cores) // (max(machine_gpus, self.count) if gpus else self.count))
        self.asked = threads_from_environment()
        self.threads = min(most, self.asked or most)
        place = runtime_folder()
        self.machine_wide = place is not None
        self._shares = Shares(place or store / ".slots")
        self._names = [f"gpu{gpu}" for gpu in gpus] or core_names(self.cores)

    def take(self) -> Slot | None:
        """A slot that was free and is now locked; None if other runs on this machine hold too much."""
        if self.gpus:
            names = self._shares.take(self._names)
            slot = Slot(tuple(names), int(names[0].removeprefix("gpu")), self.threads, 1.0) if names else None
        else:
            names = self._shares.take(self._names, self.threads, max(1, self.threads // 2))
            slot = Slot(tuple(names), None, len(names), len(names) / len(self.cores)) if names else None
        if slot:
            self.note(slot, 0)
        return slot

    def note(self, slot: Slot, job: int) -> None:
        """Write who holds the slot; `job`: process id of the job's controller."""
        self._shares.note(slot.names, orchestrator=os.getpid(), job=job, store=str(self.store))

    def give_back(self, slot: Slot) -> None:
        self._shares.give_back(slot.names)

    def other_run(self) -> str:
        """Who holds what this run waits for: `process 123 (store /runs)`."""
        holder = self._shares.holder(self._names)
        return f"process {holder['orchestrator']} (store {holder['store']})" if "store" in holder else "another run"

    def remarks(self) -> list[str]:
        """Lines about what is not as the user asked."""
        cores = f"{len(self.cores)} core{'s' * (len(self.cores) != 1)}"
        lines = []
        if not self.gpus and self.jobs > self.count:
            lines.append(f"--jobs {self.jobs}: {self.count} at a time, because this process may use {cores}")
        if self.asked and self.asked > self.threads:
            each = f"{self.threads} thread{'s' * (self.threads != 1)}"
            lines.append(f"JIGCLU_THREADS={self.asked}: each job uses {each}, because this process may use {cores}")
        if not self.machine_wide:
            lines.append("no folder for this machine's locks: runs on other stores may use the same cores")
        return lines
