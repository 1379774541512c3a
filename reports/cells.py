"""Frames and the ledger -> tables of cells. The ledger says what there should be, MLflow what there is."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from jigclu.config import ConfigError
from orchestrate.experiments import Cell, Experiment
from orchestrate.mirror_tables import resting_state
from orchestrate.source import STAGE_MODULES, stage_digest
from reports.read import TABLE_KEY, Frames, finite
from reports.verdicts import verdict

SCALE_ORDER = ("paper", "small", "mini", "smoke")


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
        return shlex.join(self._words)

    def command_of(self, result: Result) -> str:
        """The command that computes one cell, with as many seeds as it has, in a store that lacks it."""
        last = max((int(seed) for seed in result.seeds if str(seed).isdigit()), default=0)
        many = ["--seeds", str(last + 1)] if last else []
        return shlex.join([*self._words, *many, "--cells", result.cell.key])

    @property
    def _words(self) -> list[str]:
        words = ["python", "orchestrate/run.py", self.experiment.name, "--scale", self.scale]
        if self.protocol != "official":
            words += ["--protocol", self.protocol]
        if self.variant:
            # A value is JSON and may have spaces in it: what begins a word is its dotted key.
            words += [word for one in re.split(r" (?=\w+\.[\w.]+=)", self.variant) for word in ("--set", one)]
        return words

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


def fullest_first(frames: Frames) -> list[str]:
    """The scales that have runs, most filled cells first; among equals the larger scale."""
    found = set(frames.cells["scale"]) | set(frames.tables["scale"])
    filled = frames.cells[frames.cells["value"].map(finite).notna()]["scale"].value_counts()

    def rank(scale: str) -> tuple[int, int, str]:
        place = SCALE_ORDER.index(scale) if scale in SCALE_ORDER else len(SCALE_ORDER)
        return -int(filled.get(scale, 0)), place, scale

    return sorted(found, key=rank)


def assemble(
    frames: Frames,
    ledger: list[Experiment],
    scales: list[str],
    protocol: str | None = None,
    named: bool = False,
) -> list[Table]:
    """Tables of the ledger's experiments at the scales, in that order; every protocol and variant that has runs.

    `named`: the user named these experiments, so one without any run is shown as well, every cell "not run".
    """
    jobs = _Jobs(frames)
    found = pd.concat([frames.tables[TABLE_KEY], frames.cells[TABLE_KEY]]).drop_duplicates()
    tables = []
    for scale in scales:
        for experiment in ledger:
            mine = found[(found["scale"] == scale) & (found["table"] == experiment.name)]
            keys = sorted({(str(one.protocol), str(one.variant)) for one in mine.itertuples()})
            keys = [key for key in keys if protocol is None or key[0] == protocol]
            if not keys and named:
                keys = [(protocol or "official", "")]
            tables += [_table(frames, jobs, experiment, scale, *key) for key in keys]
    return tables


def _table(frames: Frames, jobs: _Jobs, experiment: Experiment, scale: str, protocol: str, variant: str) -> Table:
    experiment, key = experiment.under(protocol), (experiment.name, scale, protocol, variant)
    records = {row["cell"]: row for row in _where(frames.cells, key)}
    parent = next(iter(_where(frames.tables, key)), dict.fromkeys(("run_id", "digest", "claims", "experiment_id"), ""))
    references = {cell.key for cell in experiment.references}
    results = tuple(
        _result(cell, cell.key in references, records.get(cell.key), jobs, cell.unit or experiment.unit)
        for cell in experiment.all_cells
    )
    place = (parent["run_id"], parent["digest"], parent["claims"], parent["experiment_id"])
    table = Table(experiment, scale, protocol, variant, results, *place)
    if len(table.grid) < len(results):
        raise ConfigError(f"{experiment.name}.yaml: two cells stand at the same row and column")
    return replace(table, results=tuple(replace(one, verdict=verdict(one, table)) for one in results))


def _where(frame: pd.DataFrame, key: tuple[str, ...]) -> list[dict[str, Any]]:
    wanted = (frame[TABLE_KEY] == list(key)).all(axis=1)
    return [{str(name): value for name, value in row.items()} for row in frame[wanted].to_dict("records")]


def _result(cell: Cell, reference: bool, record: dict[str, Any] | None, jobs: _Jobs, unit: str) -> Result:
    if record is None or cell.report is None:  # what the ledger cites now may still be a run of before in MLflow
        return Result(cell, reference, resting_state(cell), "", "", "", None, None, 0, None, (), (), (), (), (), "", "")
    chains = tuple(tuple(jobs.chain(job)) for job in record["jobs"])
    own = tuple(chain[-1] for chain in chains if chain)
    value, n = finite(record["value"]), int(finite(record["n"]) or 0)
    state, message = record["state"], record["message"]
    failed = [job for chain in chains for job in chain if job.state == "failed"]
    if value is None and failed:  # a failed pretraining leaves the job on top of it pending for ever
        state, message = "failed", message or f"{failed[0].name}: {failed[0].message or 'no message'}"
    return Result(
        cell,
        reference,
        state,
        message,
        "",
        record["measured"],
        value,
        finite(record["std"]),
        n,
        _half_width(value, own[0].metrics.get("result.val_images"), unit) if own and n == 1 else None,
        tuple(record["values"]),
        tuple(record["seeds"]),
        tuple(record["commits"]) or tuple(sorted({job.commit for job in own if job.commit})),
        own,
        chains,
        record["run_id"],
        record["verdict"],
    )


def _half_width(value: float | None, images: float | None, unit: str) -> float | None:
    """Of the 95 % interval of a percentage measured on `images` images (normal approximation), in percentage points."""
    if value is None or not finite(images) or not unit.startswith("%") or not 0 <= value <= 100:
        return None
    share = value / 100
    return 100 * 1.959964 * math.sqrt(share * (1 - share) / float(images or 1))


class _Jobs:
    """Jobs by id, made of their frame's rows as they are asked for."""

    def __init__(self, frames: Frames):
        self.rows = {str(row["job"]): row for row in frames.jobs.to_dict("records")}
        self.known: dict[str, Job] = {}
        self.digests: dict[str, str] = {}  # of the tree's code now, by stage

    def chain(self, job_id: str) -> Iterator[Job]:
        """The job's upstream, then the job itself; nothing for a job that is not mirrored."""
        job = self.known.get(job_id) or self._read(job_id)
        if job is None:
            return
        self.known[job_id] = job
        for upstream in job.upstream:
            yield from self.chain(upstream)
        yield job

    def _read(self, job_id: str) -> Job | None:
        row = self.rows.get(job_id)
        if row is None:
            return None
        fields: dict[str, Any] = {str(name): value for name, value in row.items()}
        numbers = ("seconds", "finished", "attempt", "ranks", "estimated_hours")
        fields |= {"upstream": tuple(row["upstream"]), **{name: finite(row[name]) for name in numbers}}
        return Job(**fields, stale=self._stale(fields))

    def _stale(self, row: dict[str, Any]) -> str:
        """Of a finished job whose stage's code is not the tree's any more."""
        stage, made_by = str(row["stage"]), str(row["source"])
        if row["state"] != "done" or not made_by or stage not in STAGE_MODULES:
            return ""
        if stage not in self.digests:
            self.digests[stage] = stage_digest(stage)
        return "" if self.digests[stage] == made_by else "other code"
