"""The paper's tables in MLflow: one parent run a (scale, experiment, protocol, variant), one nested child a cell of the
ledger, references and cells that no job fills included. Updated in place: runs are found by their tags and a child never
appears twice."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jigclu.files import read_json, write_json
from jigclu.job_folder import JobFolder
from orchestrate.mirror.address import digest
from orchestrate.mirror.job_content import RUN_STATUS, number, run_state
from orchestrate.mirror.store import Tracking
from orchestrate.planning import experiments, overlays
from orchestrate.planning.experiments import Cell, Experiment

WORST_FIRST = ("failed", "lost", "cancelled", "running", "interrupted", "pending", "not run", "done")
CITED, NOT_APPLICABLE = "cited", "not applicable"  # the states of cells that no job fills
PARENT = ""  # the parent's key among its cells'


class Table(NamedTuple):
    scale: str
    experiment: str
    protocol: str
    variant: str

    @property
    def tags(self) -> dict[str, str]:
        return {
            "jigclu.table": self.experiment,
            "jigclu.scale": self.scale,
            "jigclu.protocol": self.protocol,
            "jigclu.variant": self.variant,
        }


@dataclass(frozen=True)
class Filler:
    """A job that fills a cell, as its folder has it now. `value` is None until it is done; `measured`: how, of time and memory."""

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
    """What a parent or child run should hold."""

    name: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]


def sync_tables(
    tracking: Tracking, jobs: Mapping[Path, tuple[str, dict[str, str]]], live: frozenset[str] | None
) -> tuple[int, int]:
    """Bring every table that a job's `uses` name up to date. `jobs`: folder -> (MLflow run id, stamps of its files).

    Returns how many runs were written to and how many the tables have. Raises RunGone where the cursor is out of date.
    """
    path = tracking.cursors / "tables.json"
    cursor = read_json(path)
    known: dict[str, dict[str, list[str]]] = cursor.get("tables", {})
    if live is not None and any(run not in live for cells in known.values() for run, _ in cells.values()):
        cursor, known = {}, {}
    ledger_files = sorted(overlays.ROOT.glob("*.yaml"))
    signature = digest(
        [
            [[folder.name, run, seen] for folder, (run, seen) in jobs.items()],
            [[file.name, file.stat().st_mtime_ns] for file in ledger_files],
        ]
    )
    if cursor.get("signature") == signature:
        return 0, sum(len(cells) for cells in known.values())
    ledger, changed = experiments.load_all(), 0
    for table, fillers in _tables(jobs).items():
        if table.experiment in ledger:
            contents = _contents(table, ledger[table.experiment].under(table.protocol), fillers)
            key = json.dumps(table)
            known[key], wrote = _sync_table(tracking, table, contents, known.get(key), path)
            changed += wrote
    if known:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"signature": signature, "tables": known})
    return changed, sum(len(cells) for cells in known.values())


# -- what the folders say ---------------------------------------------------------------------------------------------
def _tables(jobs: Mapping[Path, tuple[str, dict[str, str]]]) -> dict[Table, dict[str, list[Filler]]]:
    """Table -> cell key -> jobs by seed. Of two jobs for one seed (the recipe changed) the later planned one counts."""
    tables: dict[Table, dict[str, dict[int, Filler]]] = defaultdict(lambda: defaultdict(dict))
    for folder, (run, _) in jobs.items():
        files = JobFolder(folder)
        job, result = files.job, files.result
        state, planned = run_state(files.status, result), (folder / "job.json").stat().st_mtime
        for use in job.get("uses", []):
            table = Table(use["scale"], use["experiment"], use["protocol"], use.get("variant", ""))
            value = number(result.get("metrics", {}).get(use["metric"]))
            commit = str(job.get("commit", ""))
            seed, measured = int(job.get("seed", 0)), measured_how(use["metric"], result)
            filler = Filler(folder.name, seed, state, value, measured, commit, run, planned)
            cell = tables[table][use["cell"]]
            if filler.seed not in cell or cell[filler.seed].planned < planned:
                cell[filler.seed] = filler
    return {
        table: {key: [cell[seed] for seed in sorted(cell)] for key, cell in cells.items()}
        for table, cells in tables.items()
    }


def measured_how(metric: str, result: Mapping[str, Any]) -> str:
    """What a time or a memory of a stage's result is one of, for it is the machine's as much as the method's."""
    if metric == "hours" and result.get("limiter"):
        return f"limited by {'the loader' if result['limiter'] == 'loader' else 'compute'}"
    if metric == "peak_memory_mb" and result.get("memory_kind"):
        return "memory of the device" if result["memory_kind"] == "device" else "resident memory of the process"
    return ""


def resting_state(cell: Cell) -> str:
    """The state of a cell without any job: `cited`, `not applicable` or `not run`."""
    if cell.cited is not None:
        return CITED
    return NOT_APPLICABLE if cell.not_applicable is not None else "not run"


def _contents(table: Table, experiment: Experiment, fillers: dict[str, list[Filler]]) -> dict[str, TableRunSpec]:
    """Cell key -> content; PARENT first."""
    cells = {cell.key: _cell(table, experiment, cell, fillers.get(cell.key, [])) for cell in experiment.all_cells}
    states = [cells[cell.key].tags["jigclu.state"] for cell in experiment.all_cells if cell.report is not None]
    title = " ".join(filter(None, (table.experiment, table.protocol, table.variant)))
    note = (
        f"**{experiment.title}** ({experiment.source}), {experiment.unit}\n\nscale {table.scale}, "
        f"protocol {table.protocol}{', ' + table.variant if table.variant else ''}: "
        f"{states.count('done')} of {len(states)} cells done."
    )
    parent = TableRunSpec(title, _status(states), {**table.tags, "mlflow.note.content": note}, {})
    return {PARENT: parent, **cells}


def _status(states: list[str]) -> str:
    return RUN_STATUS.get(min(states, key=WORST_FIRST.index, default="done"), "SCHEDULED")


def _cell(table: Table, experiment: Experiment, cell: Cell, fillers: list[Filler]) -> TableRunSpec:
    fillers = fillers if cell.report is not None else []  # a cell that was run once and is cited now
    state = min((filler.state for filler in fillers), key=WORST_FIRST.index, default=resting_state(cell))
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
    if cell.report is None:
        source = f"Cited: {cell.cited}" if cell.cited is not None else f"Not applicable: {cell.not_applicable}"
    tags = {
        **table.tags,
        "jigclu.cell": cell.key,
        "jigclu.row": cell.row,
        "jigclu.column": cell.column,
        "jigclu.jobs": ",".join(filler.id for filler in fillers),
        "jigclu.job_runs": ",".join(filler.run for filler in fillers),
        "jigclu.commit": ",".join(dict.fromkeys(filler.commit for filler in fillers if filler.commit)),
        "jigclu.state": state,
        "jigclu.values": json.dumps(values),
        "jigclu.seeds": json.dumps([seed for seed, _ in filled]),
        "jigclu.measured": "; ".join(dict.fromkeys(filler.measured for filler in fillers if filler.measured)),
        "mlflow.note.content": f"{experiment.title}: {cell.row} / {cell.column}, {printed}.\n\n{source}.",
    }
    status = "FINISHED" if cell.report is None else RUN_STATUS.get(state, "SCHEDULED")
    return TableRunSpec(f"{table.experiment} {cell.key}".strip(), status, tags, metrics)


# -- what MLflow should hold ------------------------------------------------------------------------------------------
def _sync_table(
    tracking: Tracking, table: Table, contents: dict[str, TableRunSpec], known: dict[str, list[str]] | None, path: Path
) -> tuple[dict[str, list[str]], int]:
    """Write the runs whose content changed. Returns cell -> [run id, digest] and how many were written to."""
    digests = {key: digest(asdict(content)) for key, content in contents.items()}
    if known and {key: entry[1] for key, entry in known.items()} == digests:
        return known, 0
    path.unlink(missing_ok=True)  # a crash from here on: the next pass finds the runs by their tags
    experiment, changed = f"jigclu-{table.scale}-tables", 0
    entries = dict(known) if known else _find(tracking, experiment, table)
    for key, content in contents.items():
        run_id, written = entries.get(key, ["", ""])
        if written == digests[key]:
            continue
        if not run_id:
            tags = {**table.tags, **({"jigclu.cell": key} if key else {})}
            made = tracking.client.create_run(tracking.experiment(experiment), tags=tags, run_name=content.name)
            run_id = made.info.run_id
        _write(tracking, run_id, content, entries[PARENT][0] if key else "")
        entries[key] = [run_id, digests[key]]
        changed += 1
    for key in set(entries) - set(contents):  # a cell that left the ledger
        tracking.client.delete_run(entries.pop(key)[0])
        changed += 1
    return entries, changed


def _find(tracking: Tracking, experiment: str, table: Table) -> dict[str, list[str]]:
    """The table's runs by cell, the parent's under PARENT; content unknown. Empty where the parent is gone."""
    found: dict[str, list[str]] = {}
    for run in tracking.find(experiment, table=table.experiment, protocol=table.protocol):
        if run.data.tags.get("jigclu.variant", "") == table.variant:
            found.setdefault(run.data.tags.get("jigclu.cell", PARENT), [run.info.run_id, ""])
    return found


def _write(tracking: Tracking, run_id: str, content: TableRunSpec, parent: str) -> None:
    """Only what differs; a number that is no longer known becomes NaN, for MLflow cannot take a metric back."""
    run, now = tracking.run(run_id), int(time.time() * 1000)
    metrics = {**dict.fromkeys(run.data.metrics, math.nan), **content.metrics}
    points = [(name, value, now, 0) for name, value in metrics.items() if not _same(value, run.data.metrics.get(name))]
    tags = {**content.tags, **({"mlflow.parentRunId": parent} if parent else {})}
    tracking.log(run_id, points, tags={key: value for key, value in tags.items() if run.data.tags.get(key) != value})
    if run.info.status != content.status:
        tracking.client.update_run(run_id, content.status)


def _same(value: float, there: float | None) -> bool:
    return there is not None and (value == there or (math.isnan(value) and math.isnan(there)))
