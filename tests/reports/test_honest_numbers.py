"""No silent wrong number: stale, mixed, unreadable or older results are named wherever the number is shown."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.report import add_job, by_cell, run, use

from orchestrate import mirror
from orchestrate.planning import experiments
from orchestrate.planning.plan import make_plan
from reports import __main__

ENCODER, FIRST, SECOND, THIRD = "aaaaaaaaaa00", "bbbbbbbbbb00", "bbbbbbbbbb01", "bbbbbbbbbb02"


def cell(store: Path, out: Path, key: str = "m=2") -> tuple[dict[str, Any], str]:
    """The cell's entry of results.json, and the page and the Markdown table, joined."""
    found = by_cell(run(store, out))[key]
    return found, (out / "index.html").read_text() + (out / "table8-mini-official.md").read_text()


def test_an_upstream_that_was_run_again_makes_the_cell_stale(store: Path, tmp_path: Path) -> None:
    encoder = add_job(store, ENCODER, metrics={"loss": 1.0})
    add_job(store, FIRST, use("m=2"), metrics={"top1": 60.0}, upstream=[ENCODER])
    found, shown = cell(store, tmp_path / "out")
    assert not found["stale"] and "Stale, " not in shown
    encoder.write_result({"loss": 2.0})
    found, shown = cell(store, tmp_path / "out")
    assert found["stale"] and found["why_stale"] == f"upstream {ENCODER} was run again later"
    assert shown.count(f"Stale, upstream {ENCODER} was run again later: m=2.") == 2


def test_a_number_whose_job_folder_is_gone_says_so(store: Path, tmp_path: Path) -> None:
    job = add_job(store, FIRST, use("m=2"), metrics={"top1": 60.0})
    mirror.sync(store)
    shutil.rmtree(job.path)
    found, shown = cell(store, tmp_path / "out")
    assert found["value"] == 60.0 and "Stale, its job folder is not in the store: m=2." in shown


def test_data_that_changed_makes_the_cell_stale(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_job(store, FIRST, use("m=2"), metrics={"top1": 60.0}, data_fingerprint="0123456789abcdef")
    monkeypatch.setattr("orchestrate.jobs.staleness.parse", lambda stage, config: None)
    monkeypatch.setattr("orchestrate.jobs.staleness.current_fingerprint", lambda config: "another")
    found, shown = cell(store, tmp_path / "out")
    assert found["why_stale"] == "the data has changed" and "Stale, the data has changed: m=2." in shown


def test_seeds_and_cells_that_read_different_data_are_named(store: Path, tmp_path: Path) -> None:
    for job, key, seed, data in ((FIRST, "m=2", 0, "aaaa"), (SECOND, "m=2", 1, "bbbb"), (THIRD, "m=3", 0, "bbbb")):
        add_job(store, job, use(key), metrics={"top1": 60.0}, seed=seed, data_fingerprint=data)
    found, shown = cell(store, tmp_path / "out")
    assert found["mixed_data"] and "not comparable (by fingerprint aaaa: m=2; bbbb: m=2, m=3)" in shown
    assert not cell(store, tmp_path / "out", "m=3")[0]["mixed_data"]


@pytest.mark.parametrize("with_cursors", [True, False])
def test_an_unreadable_jobs_cell_says_so_and_the_page_that_it_is_not_up_to_date(
    store: Path, tmp_path: Path, with_cursors: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(store, FIRST, use("m=2"), metrics={"top1": 60.0})
    broken = add_job(store, SECOND, use("m=3"), metrics={"top1": 50.0})
    if with_cursors:
        mirror.sync(store)
    kept = (broken.path / "job.json").read_bytes()
    (broken.path / "job.json").write_text("{torn")
    found, shown = cell(store, tmp_path / "out", "m=3")
    problem = f"MLflow has every job but linear/{SECOND}, which cannot be read: job.json is torn or is no JSON"
    assert f"Not up to date: {problem}" in shown and problem in capsys.readouterr().err
    if with_cursors:
        assert found["state"] == "unreadable" and found["value"] is None and "cannot be read" in found["message"]
        assert "| 60.0 | unreadable |" in shown
    (broken.path / "job.json").write_bytes(kept)
    found, shown = cell(store, tmp_path / "out", "m=3")
    assert found["value"] == 50.0 and "Not up to date" not in shown


def test_a_torn_result_is_named_beside_its_cell(store: Path, tmp_path: Path) -> None:
    broken = add_job(store, FIRST, use("m=2"), metrics={"top1": 60.0})
    (broken.path / "result.json").write_text('{"metrics": {"top1": NaN}}')
    found, shown = cell(store, tmp_path / "out")
    assert found["state"] == "failed" and found["value"] is None
    assert "result.json: top1 is nan" in found["message"] and "result.json: top1 is nan" in shown


def test_a_result_of_a_recipe_that_was_edited_since_is_named(store: Path, tmp_path: Path) -> None:
    plan = make_plan(experiments.find(["table8"]), "mini", "official")
    (planned,) = [job for job in plan.jobs.values() if "m=2" in {use.cell for use in job.uses}]
    add_job(store, planned.id, use("m=2"), metrics={"top1": 60.0})
    add_job(store, FIRST, use("m=3"), metrics={"top1": 50.0})
    found, shown = cell(store, tmp_path / "out", "m=3")
    assert found["other_recipe"] and not cell(store, tmp_path / "out")[0]["other_recipe"]
    assert shown.count("Computed with another recipe than the experiment files have now: m=3.") == 2


@pytest.mark.parametrize("name", ["index.html", "results.json", "table8-mini-official.md"])
def test_files_that_no_report_wrote_are_left_alone(
    store: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(store, FIRST, use("m=2"), metrics={"top1": 60.0})
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    (out / "notes.txt").write_text("mine")
    assert __main__.main(["--store", str(store), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"has a file {name} that no report wrote; choose another folder with --out" in said and said.count("\n") == 1
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: "mine", "notes.txt": "mine"}
    (out / name).unlink()
    run(store, out)
    run(store, out)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_report_is_not_written_into_the_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_job(store, FIRST, use("m=2"), metrics={"top1": 60.0})
    for out in (store, store / "linear"):
        assert __main__.main(["--store", str(store), "--out", str(out)]) == 2
        assert "is in the store" in capsys.readouterr().err
    assert not (store / "index.html").exists() and not (store / "linear" / "index.html").exists()


def test_a_folder_of_an_older_version_or_of_an_interrupted_report_is_written_again(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    add_job(store, FIRST, use("m=2"), metrics={"top1": 60.0})
    run(store, out)
    (out / ".jigclu-report").unlink()
    run(store, out)
    (out / "index.html").unlink()
    run(store, out)
    assert os.listdir(out).count("index.html") == 1


def test_an_unusable_address_is_one_line(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/tmp/x")
    store.mkdir(exist_ok=True)
    assert __main__.main(["--store", str(store), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("reports: MLFLOW_TRACKING_URI=file:/tmp/x is no address") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
