"""What a report is made of: jobs, results of cells, tables. Plain records, no pandas."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrate.planning.experiments import Cell, Experiment
from orchestrate.planning.plan import command_line


@dataclass(frozen=True)
class Job:
    """One job as MLflow knows it. `seconds`: wall time of the job; `finished`: unix seconds; `ranks`: devices; `folder`: in the
    store; `fingerprint`: of its data; `source`: digest of the code; `stale`: why a finished one would not come out so today.
    """

    job: str
    run_id: str
    name: str
    stage: str
    seed: str
    state: str
    message: str
    commit: str
    command: str
    device: str
    versions: str
    seconds: float | None
    finished: float | None
    upstream: tuple[str, ...]
    params: dict[str, str]
    metrics: dict[str, float]
    uri: str
    experiment_id: str = ""
    told_stale: str = ""  # as MLflow has it
    slurm_id: str = ""
    attempt: float | None = None
    ranks: float | None = None
    estimated_hours: float | None = None
    folder: str = ""
    fingerprint: str = ""
    source: str = ""
    stale: str = ""

    @property
    def hours(self) -> float | None:
        """Device-hours that it took."""
        return None if self.seconds is None else self.seconds * (self.ranks or 1) / 3600

    @property
    def log(self) -> str:
        """In the store."""
        return f"{self.folder}/logs/" if self.folder else ""


@dataclass(frozen=True)
class Result:
    """One cell: what the paper prints and what we measured.

    `half_width`: of the binomial 95 % interval, one seed only. `measured`: how, of time and memory. `chains`: the jobs of each
    seed, upstream first.
    """

    cell: Cell
    reference: bool
    state: str
    message: str
    verdict: str
    measured: str
    value: float | None
    std: float | None
    n: int
    half_width: float | None
    values: tuple[float | None, ...]
    seeds: tuple[Any, ...]
    commits: tuple[str, ...]
    jobs: tuple[Job, ...]
    chains: tuple[tuple[Job, ...], ...]
    run_id: str = ""  # of the cell in MLflow, "" where there is none
    told: str = ""  # the verdict that stands there

    @property
    def computed(self) -> bool:
        """Whether the number is ours to compute: neither cited nor not applicable."""
        return self.cell.report is not None

    @property
    def missing(self) -> bool:
        """Whether a run would fill it that nobody has started."""
        return self.state == "not run" and self.cell.runs

    @property
    def lacking(self) -> str:
        """Why there is no value, in a word: the state; of a job that is done `NaN`, or `n/a` where it measured no such thing."""
        if self.state != "done":
            return self.state
        return "n/a" if self.jobs and not self.values else "NaN"  # a NaN stands among the values, as None

    @property
    def stale(self) -> bool:
        """Whether a job behind it was made by other code than the tree's."""
        return any(job.stale for chain in self.chains for job in chain)

    @property
    def difference(self) -> float | None:
        printed = self.cell.printed
        return None if self.value is None or printed is None else self.value - printed


@dataclass(frozen=True)
class Table:
    """One experiment at one scale under one protocol (and variant: the --set overrides)."""

    experiment: Experiment
    scale: str
    protocol: str
    variant: str
    results: tuple[Result, ...]
    run_id: str  # of the parent run in MLflow; "" where there is none
    digest: str  # of what was last uploaded to it
    claims: str = ""  # the tally that stands there
    experiment_id: str = ""  # in MLflow

    @property
    def stem(self) -> str:
        """File name without ending. A variant that is no plain word carries a digest, so that no two share a file."""
        plain = f"{self.experiment.name}-{self.scale}-{self.protocol}"
        if not self.variant:
            return plain
        slug = re.sub(r"[^A-Za-z0-9.=]+", "_", self.variant)[:60]
        return f"{plain}-{slug}-{hashlib.sha256(self.variant.encode()).hexdigest()[:6]}"

    @property
    def comparable(self) -> bool:
        """Whether the absolute numbers may be held against the printed ones."""
        return self.scale == "paper" and not self.variant

    @property
    def command(self) -> str:
        """The command that computes what is missing."""
        return command_line([self.experiment.name], self.scale, self.protocol, settings=self._settings)

    def command_of(self, result: Result) -> str:
        """The command that computes one cell, with as many seeds as it has, in a store that lacks it."""
        last = max((int(seed) for seed in result.seeds if str(seed).isdigit()), default=0)
        return command_line(
            [self.experiment.name], self.scale, self.protocol, last + 1, self._settings, [result.cell.key]
        )

    @property
    def _settings(self) -> list[str]:
        """The --set values of the variant. A value is JSON and may contain spaces: each setting starts at its dotted key."""
        return re.split(r" (?=\w+\.[\w.]+=)", self.variant) if self.variant else []

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(result.cell.row for result in self.results))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(result.cell.column for result in self.results))

    @property
    def grid(self) -> dict[tuple[str, str], Result]:
        return {(result.cell.row, result.cell.column): result for result in self.results}

    @property
    def jobs(self) -> list[Job]:
        """Every job behind the table once, upstream before what builds on it."""
        return unique_jobs([self])

    @property
    def done(self) -> int:
        return sum(result.value is not None for result in self.results)

    @property
    def total(self) -> int:
        """Cells that are ours to compute, of which `done` are."""
        return sum(result.computed for result in self.results)

    def unit(self, cell: Cell) -> str:
        return cell.unit or self.experiment.unit

    @property
    def units(self) -> list[str]:
        return list(dict.fromkeys(self.unit(result.cell) for result in self.results))


def unique_jobs(tables: Iterable[Table]) -> list[Job]:
    """Every job behind the tables once: two tables that need the same job share it."""
    chains = (chain for table in tables for result in table.results for chain in result.chains)
    return list({job.job: job for chain in chains for job in chain}.values())
