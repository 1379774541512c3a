"""Frames and the ledger -> tables of cells. The ledger lists the cells, MLflow has their results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from jigclu.job_folder import JobFolder
from orchestrate.jobs.snapshot import STAGE_MODULES, stage_digest
from orchestrate.jobs.staleness import OTHER_CODE, Staleness
from orchestrate.mirror.job_content import UNREADABLE
from orchestrate.planning.experiments import Cell, Experiment, load_all
from reports.frames import TABLE_KEY, Frames, artifact, finite
from reports.recipes import of_another_recipe
from reports.records import Job, Result, Table
from reports.statistics.noise import Pool
from reports.verdicts import scale_pool, with_noise

SCALE_ORDER = ("paper", "small", "mini", "smoke")
CORRECT = "correct.bits"  # of a job with a classifier: which validation images it has right


def fullest_first(frames: Frames) -> list[str]:
    """The scales that have runs, the one with most filled cells first; among equals the larger scale."""
    found = set(frames.cells["scale"]) | set(frames.tables["scale"])
    filled = frames.cells[frames.cells["value"].map(finite).notna()]["scale"].value_counts()

    def rank(scale: str) -> tuple[int, int, str]:
        index = SCALE_ORDER.index(scale) if scale in SCALE_ORDER else len(SCALE_ORDER)
        return -int(filled.get(scale, 0)), index, scale

    return sorted(found, key=rank)


def assemble(
    frames: Frames,
    ledger: list[Experiment],
    scales: list[str],
    protocol: str | None = None,
    named: bool = False,
    store: Path | None = None,
) -> list[Table]:
    """Tables of the ledger's experiments at the scales, in that order, for every protocol and variant that has runs.

    `named`: the user named these experiments, so those without any run are shown too, with every cell "not run".
    `store`: the job folders, if they are here: then a result of data that has changed is known to be stale, too.
    """
    jobs = _Jobs(frames, store)
    pools: dict[tuple[str, str], Pool] = {}
    found = pd.concat([frames.tables[TABLE_KEY], frames.cells[TABLE_KEY]]).drop_duplicates()
    tables = []
    for scale in scales:
        for experiment in ledger:
            own = found[(found["scale"] == scale) & (found["table"] == experiment.name)]
            keys = sorted({(str(row.protocol), str(row.variant)) for row in own.itertuples()})
            keys = [key for key in keys if protocol is None or key[0] == protocol]
            if not keys and named:
                keys = [(protocol or "official", "")]
            for key in keys:
                if (which := (scale, key[1])) not in pools:
                    pools[which] = _pool(frames, jobs, *which)
                tables.append(_table(frames, jobs, experiment, pools[which], scale, *key))
    return tables


def _pool(frames: Frames, jobs: _Jobs, scale: str, variant: str) -> Pool:
    """The spread between seeds of every cell at the scale, whichever tables are shown; a variant's apart."""
    found = []
    for experiment in load_all().values():
        cells = {cell.key: cell for cell in experiment.all_cells}
        same = (frames.cells["scale"] == scale) & (frames.cells["variant"] == variant)
        for row in frames.cells[same & (frames.cells["table"] == experiment.name)].to_dict("records"):
            if cell := cells.get(str(row["cell"])):
                unit = cell.unit or experiment.unit
                found.append(
                    (_result(cell, False, {str(name): value for name, value in row.items()}, jobs, unit), unit)
                )
    return scale_pool(found, scale)


def _elsewhere(frames: Frames, jobs: _Jobs, experiment: Experiment, key: tuple[str, str, str]) -> dict[str, Result]:
    """The cells of other experiments that the claims name."""
    found = {}
    for name in {name for claim in experiment.claims for name in claim.cells if "/" in name}:
        other, _, wanted = name.partition("/")
        there = load_all()[other].under(key[1], key[0])
        cell = next(cell for cell in there.all_cells if cell.key == wanted)
        row = next((row for row in _rows(frames.cells, (other, *key)) if row["cell"] == wanted), None)
        unit = cell.unit or there.unit
        found[name] = _result(cell.model_copy(update={"unit": unit}), False, row, jobs, unit)
    return found


def _table(
    frames: Frames, jobs: _Jobs, experiment: Experiment, pooled: Pool, scale: str, protocol: str, variant: str
) -> Table:
    ledger, experiment, key = experiment, experiment.under(protocol, scale), (experiment.name, scale, protocol, variant)
    records = {row["cell"]: row for row in _rows(frames.cells, key)}
    parent = next(iter(_rows(frames.tables, key)), {})
    references = {cell.key for cell in experiment.references}
    results = tuple(
        _result(cell, cell.key in references, records.get(cell.key), jobs, cell.unit or experiment.unit)
        for cell in experiment.all_cells
    )
    table = Table(
        pool=pooled,
        elsewhere=_elsewhere(frames, jobs, experiment, key[1:]),
        experiment=experiment,
        scale=scale,
        protocol=protocol,
        variant=variant,
        results=results,
        **{name: parent[name] for name in ("run_id", "digest", "published_claims", "experiment_id") if parent},
    )
    other = of_another_recipe(table, ledger)
    checked = (with_noise(replace(result, other_recipe=result.cell.key in other), table) for result in results)
    return replace(table, results=tuple(checked))


def _rows(frame: pd.DataFrame, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of the table with that key, as dicts."""
    selected = (frame[TABLE_KEY] == list(key)).all(axis=1)
    return [{str(name): value for name, value in row.items()} for row in frame[selected].to_dict("records")]


def _result(cell: Cell, reference: bool, record: dict[str, Any] | None, jobs: _Jobs, unit: str) -> Result:
    if record is None or not cell.runs:  # a cell that is cited by now may still have an old run in MLflow
        return Result(cell=cell, reference=reference, state=cell.resting_state)
    chains = tuple(tuple(jobs.chain(job)) for job in record["jobs"])
    own = tuple(chain[-1] for chain in chains if chain)
    value, n = finite(record["value"]), int(finite(record["n"]) or 0)
    state, message = record["state"], ""
    failed = [job for chain in chains for job in chain if job.state == "failed"]
    if value is None and failed:  # a failed pretraining leaves its downstream jobs pending forever
        state, message = "failed", f"{failed[0].name}: {failed[0].message or 'no message'}"
    if record["state"] == UNREADABLE:
        state, message = UNREADABLE, "a file of its job cannot be read; `jigclu sync` names it"
    return Result(
        cell=cell,
        reference=reference,
        state=state,
        message=message,
        measured=record["measured"],
        value=value,
        std=finite(record["std"]),
        n=n,
        half_width=_half_width(value, own[0].metrics.get("result.val_images"), unit) if own and n == 1 else None,
        values=tuple(record["values"]),
        seeds=tuple(record["seeds"]),
        commits=tuple(record["commits"]) or tuple(sorted({job.commit for job in own if job.commit})),
        jobs=own,
        chains=chains,
        run_id=record["run_id"],
        published_verdict=record["published_verdict"],
    )


def _half_width(value: float | None, images: float | None, unit: str) -> float | None:
    """Half-width of the 95 % interval of a percentage measured on `images` images (normal approximation), in points."""
    if value is None or not finite(images) or not unit.startswith("%") or not 0 <= value <= 100:
        return None
    share = value / 100
    return 100 * 1.959964 * math.sqrt(share * (1 - share) / float(images or 1))


class _Jobs:
    """Jobs by id, made from their frame's rows on demand."""

    def __init__(self, frames: Frames, store: Path | None):
        self.store, self.staleness = store, Staleness()
        self.rows = {str(row["job"]): row for row in frames.jobs.to_dict("records")}
        self.jobs: dict[str, Job] = {}
        self.digests: dict[str, str] = {}  # of the current code, by stage

    def chain(self, job_id: str) -> Iterator[Job]:
        """The job's upstream, then the job itself; nothing for a job that is not mirrored."""
        job = self.jobs.get(job_id) or self._read(job_id)
        if job is None:
            return
        self.jobs[job_id] = job
        for upstream in job.upstream:
            yield from self.chain(upstream)
        yield job

    def _read(self, job_id: str) -> Job | None:
        row = self.rows.get(job_id)
        if row is None:
            return None
        fields: dict[str, Any] = {str(name): value for name, value in row.items()}
        numbers = ("seconds", "finished", "attempt", "ranks", "estimated_hours", "spent_hours", "spent_seconds")
        fields |= {"upstream": tuple(row["upstream"]), **{name: finite(row[name]) for name in numbers}}
        correct = artifact(None, row["run_id"], row["uri"], CORRECT) if row["state"] == "done" else None
        return Job(**fields, stale=self._stale(fields), correct=correct or b"")

    def _stale(self, row: dict[str, Any]) -> str:
        """Why a finished job is stale, as `jigclu why` says; without its folder only other code is noticed. Else ""."""
        if self.store and row["folder"] and row["state"] == "done":
            folder = self.store / str(row["folder"])
            here = (folder / "job.json").exists()
            return self.staleness.reason(JobFolder(folder)) if here else "its job folder is not in the store"
        stage, made_by = str(row["stage"]), str(row["source"])
        if row["state"] != "done" or not made_by or stage not in STAGE_MODULES:
            return ""
        if stage not in self.digests:
            self.digests[stage] = stage_digest(stage)
        return "" if self.digests[stage] == made_by else OTHER_CODE
