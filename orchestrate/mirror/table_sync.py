"""The paper's tables in MLflow: a parent run per (scale, experiment, protocol, variant), with a nested run per cell.

References and cells that no job fills are included. Updated in place: runs are found by their tags, and no cell has two.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jigclu.files import read_cache, write_json
from jigclu.job_folder import JobFolder
from orchestrate.mirror.address import digest
from orchestrate.mirror.job_content import RUN_STATUS, UNREADABLE, number, readable, run_state
from orchestrate.mirror.store import Tracking
from orchestrate.mirror.tags import CELL, PARENT_RUN, PROTOCOL, STORE, TABLE, VARIANT, CellRecord, TableKey, TableRecord
from orchestrate.planning import experiments, overlays
from orchestrate.planning.experiments import Cell, Experiment

if TYPE_CHECKING:
    from mlflow.entities import Run

WORST_FIRST = (UNREADABLE, "failed", "lost", "cancelled", "running", "interrupted", "pending", "not run", "done")
FORM = 3  # version of the runs' content: raised when it changes, so that existing runs are updated
PARENT = ""  # the parent's key among its cells


@dataclass(frozen=True)
class Mirrored:
    """A job folder in MLflow. `run`: its run's id, "" without one; `uses`, `seed`: as last read, for when it is not
    `readable` now.
    """

    run: str
    stamps: dict[str, str]
    readable: bool
    uses: list[dict[str, str]]
    seed: int


@dataclass(frozen=True)
class Filler:
    """A job that fills a cell. `value`: None until it is done; `measured`: how a time or memory was measured; `planned`:
    unix seconds."""

    id: str
    seed: int
    state: str
    value: float | None
    measured: str
    commit: str
    run: str
    planned: float


@dataclass(frozen=True)
class TableRunSpec:
    """The content of a parent or child run."""

    name: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]


def sync_tables(tracking: Tracking, jobs: Mapping[Path, Mirrored], live: frozenset[str] | None) -> tuple[int, int]:
    """Update every table that a job's `uses` names.

    Returns how many runs were written to and how many the tables have. Raises RunGone if the cursor is out of date.
    """
    path = tracking.cursors / "tables.json"
    cursor = read_cache(path)
    entries: dict[str, dict[str, list[str]]] = cursor.get("tables", {})
    if live is not None and any(run not in live for cells in entries.values() for run, _ in cells.values()):
        cursor, entries = {}, {}
    ledger_files = sorted(overlays.ROOT.glob("*.yaml"))
    signature = digest(
        [
            FORM,
            [[folder.name, job.run, job.stamps, job.readable] for folder, job in jobs.items()],
            [[file.name, file.stat().st_mtime_ns] for file in ledger_files],
        ]
    )
    if cursor.get("signature") == signature:
        return 0, sum(len(cells) for cells in entries.values())
    ledger, changed = experiments.load_readable(), 0
    for table, fillers in _tables(jobs).items():
        if table.table in ledger:
            contents = _contents(table, ledger[table.table].under(table.protocol, table.scale), fillers)
            key = json.dumps([table.scale, table.table, table.protocol, table.variant])
            entries[key], wrote = _sync_table(tracking, table, contents, entries.get(key), path)
            changed += wrote
    if entries:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"signature": signature, "tables": entries})
    return changed, sum(len(cells) for cells in entries.values())


# -- the content of the runs, by the job folders ----------------------------------------------------------------------
def _tables(jobs: Mapping[Path, Mirrored]) -> dict[TableKey, dict[str, list[Filler]]]:
    """Table -> cell key -> jobs by seed. Of two jobs for one seed (the recipe changed) the one planned later counts."""
    tables: dict[TableKey, dict[str, dict[int, Filler]]] = defaultdict(lambda: defaultdict(dict))
    for folder, mirrored in jobs.items():
        files, planned = JobFolder(folder), (folder / "job.json").stat().st_mtime
        if mirrored.readable:
            job, result = read_cache(folder / "job.json"), files.result
            state = run_state(files.status, result)
        else:
            job, result, state = {"uses": mirrored.uses, "seed": mirrored.seed}, {}, UNREADABLE
        for use in job.get("uses", []):
            table = TableKey(
                table=use["experiment"],
                scale=use["scale"],
                protocol=use["protocol"],
                variant=use.get("variant", ""),
            )
            filler = Filler(
                id=folder.name,
                seed=int(job.get("seed", 0)),
                state=state,
                value=number(result.get("metrics", {}).get(use["metric"])),
                measured=measured_how(use["metric"], result),
                commit=str(job.get("commit", "")),
                run=mirrored.run,
                planned=planned,
            )
            cell = tables[table][use["cell"]]
            if filler.seed not in cell or cell[filler.seed].planned < planned:
                cell[filler.seed] = filler
    return {
        table: {key: [cell[seed] for seed in sorted(cell)] for key, cell in cells.items()}
        for table, cells in tables.items()
    }


def measured_how(metric: str, result: Mapping[str, Any]) -> str:
    """How a time or memory was measured, since it depends on the machine as well as on the method; else ""."""
    if metric == "hours" and result.get("limiter"):
        return f"limited by {'the loader' if result['limiter'] == 'loader' else 'compute'}"
    if metric == "peak_memory_mb" and result.get("memory_kind"):
        return "memory of the device" if result["memory_kind"] == "device" else "resident memory of the process"
    return ""


def _contents(table: TableKey, experiment: Experiment, fillers: dict[str, list[Filler]]) -> dict[str, TableRunSpec]:
    """Cell key -> content; PARENT first."""
    cells, states = {}, []
    for index, cell in enumerate(experiment.all_cells):
        own = fillers.get(cell.key, []) if cell.runs else []  # not the jobs of a cell that is cited by now
        state = min((filler.state for filler in own), key=WORST_FIRST.index, default=cell.resting_state)
        order = _order(table, index + 1)
        cells[cell.key] = _cell(table, experiment, cell, own, state, order)
        states += [state] if cell.runs else []
    title = " ".join(filter(None, (table.table, table.protocol, table.variant)))
    note = (
        f"**{experiment.title}** ({experiment.source}), {experiment.unit}\n\nscale {table.scale}, "
        f"protocol {table.protocol}{', ' + table.variant if table.variant else ''}: "
        f"{states.count('done')} of {len(states)} cells done."
    )
    tags = TableRecord(**asdict(table), order=_order(table, 0), note=note).to_tags()
    return {PARENT: TableRunSpec(name=title, status=_status(states), tags=tags, metrics={}), **cells}


def _order(table: TableKey, index: int) -> str:
    """Sorts a table before its cells, and those as in the experiment file."""
    return " ".join(filter(None, (table.table, table.protocol, table.variant, f"{index:03d}")))


def _status(states: list[str]) -> str:
    return RUN_STATUS.get(min(states, key=WORST_FIRST.index, default="done"), "SCHEDULED")


def _cell(
    table: TableKey, experiment: Experiment, cell: Cell, fillers: list[Filler], state: str, order: str
) -> TableRunSpec:
    filled = [(filler.seed, filler.value) for filler in fillers if filler.value is not None]
    values = [value for _, value in filled]
    metrics: dict[str, float] = {"n": len(values)}
    if cell.printed is not None:
        metrics["printed"] = cell.printed
    if values:
        metrics["value"] = statistics.fmean(values)
        if cell.printed is not None:
            metrics["difference"] = metrics["value"] - cell.printed
    if len(values) > 1:
        metrics["std"] = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    unit = cell.unit or experiment.unit
    printed = "not printed in the paper" if cell.printed is None else f"printed {cell.printed:g} {unit}"
    source = f"Jobs: {', '.join(f'`{filler.id}` ({filler.state})' for filler in fillers) or 'none yet'}"
    if not cell.runs:
        source = f"Cited: {cell.cited}" if cell.cited is not None else f"Not applicable: {cell.not_applicable}"
    record = CellRecord(
        **asdict(table),
        cell=cell.key,
        order=order,
        row=cell.row,
        column=cell.column,
        jobs=tuple(filler.id for filler in fillers),
        job_runs=tuple(filler.run for filler in fillers),
        commits=tuple(dict.fromkeys(filler.commit for filler in fillers if filler.commit)),
        state=state,
        values=tuple(values),
        seeds=tuple(seed for seed, _ in filled),
        measured="; ".join(dict.fromkeys(filler.measured for filler in fillers if filler.measured)),
        note=f"{experiment.title}: {cell.row} / {cell.column}, {printed}.\n\n{source}.",
    )
    return TableRunSpec(
        name=f"{table.table} {cell.key}".strip(),
        status=RUN_STATUS.get(state, "SCHEDULED") if cell.runs else "FINISHED",
        tags=record.to_tags(),
        metrics={
            name: readable(round(value, 2)) if unit.startswith("%") else readable(value)
            for name, value in metrics.items()
        },
    )


# -- writing it to MLflow ---------------------------------------------------------------------------------------------
def _sync_table(
    tracking: Tracking,
    table: TableKey,
    contents: dict[str, TableRunSpec],
    written: dict[str, list[str]] | None,
    path: Path,
) -> tuple[dict[str, list[str]], int]:
    """Write the runs whose content changed; `written`: as returned by the last pass, by its cursor file `path`.

    Returns cell -> [run id, digest] and how many runs were written to.
    """
    digests = {key: digest(asdict(content)) for key, content in contents.items()}
    if written and {key: entry[1] for key, entry in written.items()} == digests:
        return written, 0
    path.unlink(missing_ok=True)  # after a crash from here on, the next pass finds the runs by their tags
    experiment, changed = f"jigclu-{table.scale}-tables", 0
    tracking.experiment(experiment)  # restored if it was deleted; its view is brought up to date
    entries = dict(written) if written else _find(tracking, experiment, table, contents)
    for key, content in contents.items():
        run_id, content_digest = entries.get(key, ["", ""])
        if content_digest == digests[key]:
            continue
        if not run_id:
            tags = {**table.to_tags(), STORE: tracking.store_id, **({CELL: key} if key else {})}
            run = tracking.client.create_run(tracking.experiment(experiment), tags=tags, run_name=content.name)
            run_id = run.info.run_id
        _write(tracking, run_id, content, entries[PARENT][0] if key else "")
        entries[key] = [run_id, digests[key]]
        changed += 1
    for key in set(entries) - set(contents):  # a cell that was removed from the experiment file
        tracking.client.delete_run(entries.pop(key)[0])
        changed += 1
    return entries, changed


def _find(
    tracking: Tracking, experiment: str, table: TableKey, contents: dict[str, TableRunSpec]
) -> dict[str, list[str]]:
    """The table's runs by cell, the parent's under PARENT, with unknown content. Empty if there are none.

    If other stores may use the same MLflow, only this store's. Runs of an older mirror name no store: they are this
    store's if a cell has the jobs and values that it has here, else they are left alone.
    """
    named: dict[str, Run] = {}
    unnamed: dict[str, Run] = {}
    for run in tracking.find(experiment, {TABLE: table.table, PROTOCOL: table.protocol}):
        tags = run.data.tags
        if tags.get(VARIANT, "") != table.variant:
            continue
        own = tracking.own or tags.get(STORE) == tracking.store_id
        if own and tags.get(CELL, PARENT) in named:  # it was deleted, and came back with its restored experiment
            tracking.client.delete_run(run.info.run_id)
        elif own or not tags.get(STORE):
            (named if own else unnamed).setdefault(tags.get(CELL, PARENT), run)
    found = named or (unnamed if _have_same_jobs(unnamed, contents) else {})
    return {key: [run.info.run_id, ""] for key, run in found.items()}


def _have_same_jobs(runs: dict[str, Run], contents: dict[str, TableRunSpec]) -> bool:
    """Whether one of the runs (cell -> run) has the jobs and values of its cell here."""
    keys = (CellRecord.key("jobs"), CellRecord.key("values"))
    return any(
        run.data.tags.get(keys[0]) and all(run.data.tags.get(key) == contents[cell].tags[key] for key in keys)
        for cell, run in runs.items()
        if cell != PARENT and cell in contents
    )


def _write(tracking: Tracking, run_id: str, content: TableRunSpec, parent: str) -> None:
    """Write what differs. A number that is no longer known becomes NaN, since MLflow cannot delete a metric."""
    run, now = tracking.run(run_id), int(time.time() * 1000)
    metrics = {**dict.fromkeys(run.data.metrics, math.nan), **content.metrics}
    points = [(name, value, now, 0) for name, value in metrics.items() if not _same(value, run.data.metrics.get(name))]
    tags = {**content.tags, STORE: tracking.store_id, **({PARENT_RUN: parent} if parent else {})}
    tracking.log(run_id, points, tags={key: value for key, value in tags.items() if run.data.tags.get(key) != value})
    if run.info.status != content.status:
        tracking.client.update_run(run_id, content.status)


def _same(value: float, present: float | None) -> bool:
    return present is not None and (value == present or (math.isnan(value) and math.isnan(present)))
