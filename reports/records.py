"""What a report shows: jobs, results of cells, tables. Plain records, no pandas."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jigclu.config import DATASETS
from orchestrate.planning.experiments import Cell, Experiment
from orchestrate.planning.plan import command_line
from reports.statistics.noise import Pool

NO_BETTER = 0.98  # share of the loss at chance; above it a network has learnt nothing worth the name


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job in MLflow. `seconds`: in training; `spent_seconds`, `spent_hours`: see orchestrate/jobs/spent.py; `finished`:
    unix seconds; `ranks`: devices; `folder`: relative to the store; `fingerprint`: of its data; `source`: digest of its
    code; `stale`: what has changed since it finished, in words; `published_stale`: what MLflow has for `stale`; `correct`: its
    correct.bits, a bit per validation image, if the file is on this machine.
    """

    job: str
    name: str
    stage: str
    state: str
    run_id: str = ""
    seed: str = ""
    message: str = ""
    commit: str = ""
    command: str = ""
    device: str = ""
    versions: str = ""
    seconds: float | None = None
    finished: float | None = None
    upstream: tuple[str, ...] = ()
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    uri: str = ""  # of its artifacts
    experiment_id: str = ""
    published_stale: str = ""
    slurm_id: str = ""
    attempt: float | None = None
    ranks: float | None = None
    estimated_hours: float | None = None
    spent_hours: float | None = None
    spent_seconds: float | None = None
    folder: str = ""
    fingerprint: str = ""
    source: str = ""
    stale: str = ""
    correct: bytes = field(default=b"", repr=False)

    @property
    def hours(self) -> float | None:
        """Device-hours spent; of a job that an older version ran, those in training."""
        if self.spent_hours is not None:
            return self.spent_hours
        return None if self.seconds is None else self.seconds * (self.ranks or 1) / 3600

    @property
    def wall_seconds(self) -> float | None:
        """Time spent; of a job that an older version ran, that in training."""
        return self.seconds if self.spent_seconds is None else self.spent_seconds

    @property
    def at_chance(self) -> bool:
        """Whether a pretraining's loss ended where it is if the network tells nothing apart."""
        loss, chance = self.metrics.get("result.loss"), self.metrics.get("result.chance_loss")
        return loss is not None and chance is not None and loss > NO_BETTER * chance

    @property
    def log(self) -> str:
        """The folder of its logs, relative to the store."""
        return f"{self.folder}/logs/" if self.folder else ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cell: the printed and the measured number.

    `half_width`: of the binomial 95 % interval, one seed only. `noise`: 95 % half-width that also covers other seeds, None if
    it is unknown; `noise_basis`: what it is based on, or why it is unknown. `measured`: how a time or memory was measured.
    `chains`: the jobs of each seed, upstream first. `other_recipe`: the experiment files would plan other jobs now.
    `run_id`: of the cell in MLflow; `published_verdict`: what MLflow has for `verdict`.
    """

    cell: Cell
    reference: bool
    state: str
    message: str = ""
    verdict: str = ""
    measured: str = ""
    value: float | None = None
    std: float | None = None
    n: int = 0
    half_width: float | None = None
    noise: float | None = None
    noise_basis: str = ""
    values: tuple[float | None, ...] = ()
    seeds: tuple[Any, ...] = ()
    commits: tuple[str, ...] = ()
    jobs: tuple[Job, ...] = ()
    chains: tuple[tuple[Job, ...], ...] = ()
    run_id: str = ""
    published_verdict: str = ""
    other_recipe: bool = False

    @property
    def computed(self) -> bool:
        """Whether the number is computed here: it is neither cited nor not applicable."""
        return self.cell.runs

    @property
    def missing(self) -> bool:
        """Whether it needs a run that nobody has started; not the cost of a training that another cell needs."""
        return self.state == "not run" and self.cell.runs and not (self.reference and self.cell.stage == "pretrain")

    @property
    def lacking(self) -> str:
        """Why there is no value, in a word: the state; for a finished job `NaN`, or `n/a` if it did not measure this."""
        if self.state != "done":
            return self.state
        return "n/a" if self.jobs and not self.values else "NaN"  # a NaN is among the values, as None

    @property
    def at_chance(self) -> bool:
        """Whether the loss of a pretraining behind it ended at chance."""
        return any(job.at_chance for chain in self.chains for job in chain)

    @property
    def stale(self) -> bool:
        """Whether the code or the data of a job behind it has changed since."""
        return any(job.stale for chain in self.chains for job in chain)

    @property
    def why_stale(self) -> str:
        """What has changed, in words; that of an upstream job stands for its dependents'."""
        reasons = [part for chain in self.chains for job in chain for part in job.stale.split(", ") if part]
        own = [reason for reason in reasons if not reason.endswith(" is stale")]
        return ", ".join(dict.fromkeys(own or reasons))

    @property
    def data(self) -> dict[str, set[str]]:
        """What was read (a stage with its data set, as configured) -> fingerprints of it: several if the seeds read other data."""
        found: dict[str, set[str]] = {}
        for job in (job for chain in self.chains for job in chain if job.state == "done" and job.fingerprint):
            config = [f"{key}={value}" for key, value in sorted(job.params.items()) if key.startswith("data.")]
            found.setdefault(" ".join([job.stage, *config]), set()).add(job.fingerprint)
        return found

    @property
    def difference(self) -> float | None:
        printed = self.cell.printed
        return None if self.value is None or printed is None else self.value - printed


@dataclass(frozen=True, kw_only=True)
class Table:
    """One experiment at one scale under one protocol (and variant: the --set overrides).

    `pool`: the spread between seeds at the scale. `elsewhere`: cells of other experiments that its claims name, by
    `table1/JigClu`. `run_id`, `experiment_id`: of the parent run in MLflow; `digest`: of the files last uploaded to it;
    `published_claims`: the tally that it has.
    """

    experiment: Experiment
    scale: str
    protocol: str
    variant: str
    results: tuple[Result, ...]
    pool: Pool = field(default_factory=Pool)
    elsewhere: Mapping[str, Result] = field(default_factory=dict)
    run_id: str = ""
    digest: str = ""
    published_claims: str = ""
    experiment_id: str = ""

    @property
    def stem(self) -> str:
        """File name without suffix. A variant adds a digest, so that no two share a file."""
        plain = f"{self.experiment.name}-{self.scale}-{self.protocol}"
        if not self.variant:
            return plain
        slug = re.sub(r"[^A-Za-z0-9.=]+", "_", self.variant)[:60]
        return f"{plain}-{slug}-{hashlib.sha256(self.variant.encode()).hexdigest()[:6]}"

    @property
    def comparable(self) -> bool:
        """Whether absolute numbers can be compared with the printed ones."""
        return self.scale == "paper" and not self.variant

    @property
    def command(self) -> str:
        """The command that computes what is missing."""
        return command_line([self.experiment.name], self.scale, self.protocol, settings=self.settings)

    def command_of(self, result: Result) -> str:
        """The command that computes one cell with its seeds, in an empty store."""
        seeds = [int(seed) for seed in result.seeds if str(seed).isdigit()] or [0]
        first, count = min(seeds), max(seeds) - min(seeds) + 1
        return command_line(
            [self.experiment.name], self.scale, self.protocol, count, self.settings, [result.cell.key], first
        )

    @property
    def settings(self) -> list[str]:
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
        """Every job behind the table once, upstream jobs first."""
        return unique_jobs([self])

    @property
    def done(self) -> int:
        return sum(result.value is not None for result in self.results)

    @property
    def total(self) -> int:
        """Cells that are computed here; `done` of them have a value."""
        return sum(result.computed for result in self.results)

    def unit(self, cell: Cell) -> str:
        return cell.unit or self.experiment.unit

    def floor(self, result: Result) -> Result | None:
        """The same measurement on random weights, of the result's own column or row; None if there is none, or it is that."""
        same = [
            other
            for other in self.results
            if other.cell.method is None and other.value is not None and other.cell.report == result.cell.report
        ]
        if result.cell.method is None:
            return None
        near = [other for other in same if other.cell.column == result.cell.column]
        return next(iter(near or [other for other in same if other.cell.row == result.cell.row]), None)

    def gain(self, result: Result) -> float | None:
        """Measured value minus that of random weights."""
        floor = self.floor(result)
        if floor is None or floor.value is None or result.value is None:
            return None
        return result.value - floor.value

    def chance(self, result: Result) -> float | None:
        """The accuracy of guessing, in percent, of a cell that is one."""
        guesses = {"top1": 1, "top5": 5}.get(result.cell.metric) if result.computed else None
        data = next((job.params.get("data.name", "") for job in result.jobs), "")
        return 100 * guesses / DATASETS[data].classes if guesses and data in DATASETS else None

    @property
    def ran(self) -> list[str]:
        """What was run instead of the paper's own, `ResNet-10 on textures`; empty if it is the paper's."""
        kinds = {(job.params.get("backbone", ""), job.params.get("data.name", "")) for job in self.jobs}
        names = sorted(
            f"{backbone.replace('resnet', 'ResNet-')} on {data}" for backbone, data in kinds if backbone and data
        )
        return [] if self.scale == "paper" else names

    @property
    def units(self) -> list[str]:
        return list(dict.fromkeys(self.unit(result.cell) for result in self.results))


def unique_jobs(tables: Iterable[Table]) -> list[Job]:
    """Every job behind the tables once: two tables that need the same job share it."""
    chains = (chain for table in tables for result in table.results for chain in result.chains)
    return list({job.job: job for chain in chains for job in chain}.values())
