"""The vocabulary of MLflow tags: what is written is read back, and no other file spells a tag's key."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.mlflow import ROOT, cells, log_steps, make_job, run_of, runs, use

from orchestrate import mirror
from orchestrate.mirror import tags
from orchestrate.mirror.tags import CellRecord, JobRecord, Record, TableRecord

JOB = JobRecord(
    job="aaaaaaaaaaaa",
    stage="linear",
    label="m=2",
    experiments=("table7", "table8"),
    seed="1",
    protocol="official",
    scale="mini",
    state="failed",
    message="loss is NaN, at step 310",
    command="jigclu run table8",
    device="A100",
    versions="python=3.11 torch=2.6",
    slurm_job_id="17",
    attempt=2,
    ranks=4,
    estimated_hours=0.0123457,
    spent_hours=0.25,
    spent_seconds=900.5,
    folder="linear/aaaaaaaaaaaa",
    data_fingerprint="f00d",
    source_digest="c0de",
    commit="c0ffee",
    note="**linear**, failed",
)
TABLE = TableRecord(table="table8", scale="mini", protocol="paper", variant="linear.milestones=[0.3, 0.6]", note="x")
CELL = CellRecord(
    table="table8",
    scale="mini",
    protocol="official",
    variant="",
    cell="m=2",
    row="Accuracy (%)",
    column="2",
    jobs=("aaaaaaaaaaaa", "bbbbbbbbbbbb"),
    job_runs=("1", "2"),
    commits=("c0ffee",),
    state="done",
    values=(60.25, 61.0),
    seeds=(0, 1),
    measured="limited by the loader",
    note="Table 8",
)


@pytest.mark.parametrize("record", [JOB, TABLE, CELL, JobRecord(job="a"), CellRecord(cell="a")])
def test_a_record_survives_the_way_to_tags_and_back(record: Record) -> None:
    written = record.to_tags()
    assert type(record).from_tags(written) == record
    assert len(written) == len(fields(record)) and all(isinstance(value, str) for value in written.values())


def test_a_record_survives_the_way_through_mlflow(store: Path) -> None:
    folder = make_job(store, "aaaaaaaaaaaa", uses=[use("m=2")], label="m=2", seed=3)
    log_steps(folder, 0)
    folder.write_result({"top1": 61.0}, world=2, device="a CPU")
    mirror.sync(store)
    job = JobRecord.from_tags(run_of(store, folder).data.tags)
    assert (job.job, job.experiments, job.seed, job.state, job.ranks) == ("aaaaaaaaaaaa", ("table8",), "3", "done", 2)
    assert job.to_tags().items() <= run_of(store, folder).data.tags.items()
    cell = CellRecord.from_tags(cells(store)["m=2"].data.tags)
    assert (cell.table, cell.jobs, cell.values, cell.seeds) == ("table8", ("aaaaaaaaaaaa",), (61.0,), (3,))
    assert cell.to_tags().items() <= cells(store)["m=2"].data.tags.items()
    (parent,) = [run for run in runs(store, "jigclu-mini-tables") if tags.CELL not in run.data.tags]
    assert TableRecord.from_tags(parent.data.tags).to_tags().items() <= parent.data.tags.items()


def test_damaged_tags_are_read_as_missing_numbers_and_words() -> None:
    read = JobRecord.from_tags({"jigclu.job": "a", "jigclu.attempt": "many", "jigclu.ranks": "inf"})
    assert read.attempt is None and read.ranks is None and read.state == ""
    assert CellRecord.from_tags({"jigclu.seeds": "0, 1"}).seeds == ("0", "1")


def test_the_keys_on_mlflow_do_not_change() -> None:
    """Stores that exist would lose their runs: the mirror finds them by these keys."""
    job = "job stage label experiments seed protocol scale state message command device versions slurm_job_id attempt"
    job += " ranks estimated_hours spent_hours spent_seconds folder encoder result data_fingerprint source_digest"
    cell = "table scale protocol variant cell order row column jobs job_runs commit state values seeds measured"
    notes = ["mlflow.note.content"]
    commit = ["mlflow.source.git.commit"]
    assert list(JOB.to_tags()) == [f"jigclu.{name}" for name in job.split()] + commit + notes
    assert list(TABLE.to_tags()) == [f"jigclu.{name}" for name in [*cell.split()[:4], "order"]] + notes
    assert list(CELL.to_tags()) == [f"jigclu.{name}" for name in cell.split()] + notes
    published = (tags.STALE, tags.VERDICT, tags.CLAIMS, tags.REPORT_DIGEST)
    assert published == ("jigclu.stale", "jigclu.verdict", "jigclu.claims", "jigclu.report_digest")


def _strings(path: Path) -> list[tuple[int, str]]:
    """Every string of the file with its line, docstrings left out."""
    tree = ast.parse(path.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    docstrings = {id(node.body[0].value) for node in nodes if isinstance(node.body[0], ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [(node.lineno, node.value) for node in strings if id(node) not in docstrings]


def test_no_other_file_spells_a_tag() -> None:
    keys = {*JOB.to_tags(), *CELL.to_tags(), tags.STALE, tags.VERDICT, tags.CLAIMS, tags.REPORT_DIGEST}
    pattern = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, sorted(keys)))})(?!\w)")
    home = Path(tags.__file__)
    found = {
        path: [(line, text) for line, text in _strings(path) if pattern.search(text)]
        for package in ("orchestrate", "reports")
        for path in (ROOT / package).rglob("*.py")
    }
    assert found.pop(home)
    assert {path: hits for path, hits in found.items() if hits} == {}
    templates = [path for path in (ROOT / "reports").rglob("*.j2") if pattern.search(path.read_text())]
    assert templates == []
