"""What stands round the tables: the register of ambiguities, cost, stale jobs, what MLflow is told; stores that are not whole."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import environment
from helpers.report import ROOT, add_job, run, use

from jigclu.files import write_json
from orchestrate import mirror
from orchestrate.jobs.snapshot import stage_digest
from orchestrate.mirror.address import server
from orchestrate.mirror.store import connect
from orchestrate.mirror.views import views
from reports.page import register

PRETRAIN, OFFICIAL, PRINTED, OTHER = "aaaaaaaaaa00", "bbbbbbbbbb00", "bbbbbbbbbb01", "bbbbbbbbbb02"


@pytest.fixture
def filled(store: Path) -> Path:
    """Table 8's m=2 under both protocols, made by today's code, and m=3 made by other code, on one pretraining."""
    today = {stage: stage_digest(stage) for stage in ("pretrain", "linear")}
    folder = add_job(store, PRETRAIN, metrics={"loss": 3.5}, source_digest=today["pretrain"], data_fingerprint="f00d")
    write_json(folder.path / "submission.json", {"cluster": "local", "estimate_hours": 0.05})
    for job, cell, protocol, top1 in ((OFFICIAL, "m=2", "official", 46.2), (PRINTED, "m=2", "paper", 44.1)):
        more = {"protocol": protocol, "upstream": [PRETRAIN], "source_digest": today["linear"]}
        add_job(store, job, use(cell, protocol=protocol), metrics={"top1": top1, "val_images": 400}, **more)
    add_job(store, OTHER, use("m=3"), metrics={"top1": 40.0}, upstream=[PRETRAIN], source_digest="0ldc0de")
    return store


def tags_of(store: Path, experiment: str, tag: str) -> dict[str, str]:
    """Run name -> the tag's value, where it has one."""
    pass

    client = connect(mirror.tracking_uri(store))
    assert client is not None
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    return {str(one.info.run_name): one.data.tags[tag] for one in runs if one.data.tags.get(tag)}


def test_both_readings_stand_in_the_register_where_both_were_run(filled: Path, tmp_path: Path) -> None:
    run(filled, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "table8 m=2 at mini: official 46.2, paper 44.1" in page
    assert "table8 (mini, official): m=2 46.2, m=3 40.0" in page
    assert all(f'<div id="D{number}">' in page for number in range(1, 17))


def test_every_point_of_the_register_names_cells_that_exist() -> None:
    import yaml

    from orchestrate.planning import experiments

    ledger = experiments.load_all()
    entries: list[dict[str, Any]] = yaml.safe_load(Path(register.__file__).with_name("register.yaml").read_text())
    for entry in entries:
        both = entry.get("both", {})
        for name, keys in ({} if isinstance(both, str) else both).items():
            assert set(keys) <= {cell.key for cell in ledger[name].all_cells}, entry["id"]


def test_cost_is_what_was_estimated_and_what_was_spent(filled: Path, tmp_path: Path) -> None:
    found = run(filled, tmp_path / "out")["run"]
    assert found["device_hours"] == {"CPU": 0.1} and found["seeds"] == ["0"]  # four jobs of 90 s
    page = (tmp_path / "out" / "index.html").read_text()
    assert (
        "<td>0.10 h</td><td>0.05 h (1 of 4 jobs)</td><td>0.03 h</td><td>0.50</td>" in page
    )  # 90 s where 180 were estimated
    assert "not estimated" in page


def test_a_result_of_other_code_is_stale_on_the_page_and_in_mlflow(filled: Path, tmp_path: Path) -> None:
    assert run(filled, tmp_path / "out")["run"]["stale"] == 1
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"python -m orchestrate why {OTHER}" in page and f"orchestrate why {OFFICIAL}" not in page
    assert list(tags_of(filled, "jigclu-mini", "jigclu.stale")) == [f"linear resnet18 imagenette {OTHER} seed 0"]


def test_mlflow_has_verdicts_claims_and_the_views_and_a_second_report_writes_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job(store, OFFICIAL, use("m=2", "paper"), scale="paper", metrics={"top1": 80.7, "val_images": 5000})
    run(store, tmp_path / "out")
    assert tags_of(store, "jigclu-paper-tables", "jigclu.verdict") == {"table8 m=2": "reproduced"}
    assert tags_of(store, "jigclu-paper-tables", "jigclu.claims") == {"table8 official": "2 open"}
    from mlflow import MlflowClient

    pass

    client = connect(mirror.tracking_uri(store))
    assert client is not None
    for name in ("jigclu-paper", "jigclu-paper-tables"):
        found = client.get_experiment_by_name(name)
        assert found and views(name).items() <= found.tags.items()

    written: list[str] = []
    for call in (
        "set_tag",
        "log_batch",
        "set_experiment_tag",
        "log_artifacts",
        "log_artifact",
        "create_run",
        "update_run",
    ):
        monkeypatch.setattr(
            MlflowClient, call, lambda *given, call=call, **named: written.append(f"{call} {given} {named}")
        )
    run(store, tmp_path / "out")
    assert written == []
    add_job(store, OTHER, use("m=3", "paper"), scale="paper", metrics={"top1": 60.0, "val_images": 5000})
    monkeypatch.undo()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run(store, tmp_path / "out")
    told = tags_of(store, "jigclu-paper-tables", "jigclu.verdict")
    assert told["table8 m=2"] == "reproduced" and told["table8 m=3"].startswith("off by")


def test_runs_of_an_older_mirror_get_what_a_newer_one_tells(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrate.mirror import job_sync

    mirror.sync(filled)
    assert mirror.sync(filled).changed == 0
    told = tags_of(filled, "jigclu-mini", "jigclu.data_fingerprint")
    assert list(told.values()) == ["f00d"]
    plain = job_sync.wanted_run
    monkeypatch.setattr(job_sync, "FORM", job_sync.FORM + 1)

    def more(folder: Path) -> Any:
        wanted = plain(folder)
        wanted.tags["jigclu.new"] = "here"
        return wanted

    monkeypatch.setattr(job_sync, "wanted_run", more)
    mirror.sync(filled)
    assert len(tags_of(filled, "jigclu-mini", "jigclu.new")) == 4


def test_a_deleted_job_folder_leaves_a_page_that_says_what_is_missing(filled: Path, tmp_path: Path) -> None:
    run(filled, tmp_path / "before")
    shutil.rmtree(filled / "linear" / OTHER)
    shutil.rmtree(filled / "pretrain")
    after = run(filled, tmp_path / "after")
    found = {(one["cell"], one["protocol"]): one for one in after["cells"]}
    assert found["m=2", "official"]["value"] == 46.2
    assert found["m=3", "official"]["state"] == "not run" and found["m=3", "official"]["value"] is None
    page = (tmp_path / "after" / "index.html").read_text()
    assert "Not run: m = 3, m = 4, random init. To run what is missing:" in " ".join(page.split())


def test_a_job_whose_upstream_is_not_in_mlflow_says_so_and_links_nowhere(store: Path, tmp_path: Path) -> None:
    add_job(store, OFFICIAL, use("m=2"), metrics={"top1": 46.2}, upstream=["cccccccccc99"])
    run(store, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "cccccccccc99 (not in MLflow)" in page and 'href="#job-cccccccccc99"' not in page


def test_the_command_of_a_cell_plans_that_cell_alone(filled: Path, tmp_path: Path) -> None:
    cells = run(filled, tmp_path / "out")["cells"]
    command = next(one["command"] for one in cells if (one["cell"], one["protocol"]) == ("m=2", "paper"))
    assert command == "python orchestrate/run.py table8 --scale mini --protocol paper --cells m=2"
    words = [sys.executable, *command.split()[1:], "--dry-run"]
    done = subprocess.run(words, cwd=ROOT, env=environment(tmp_path / "empty"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jobs: 2 naive, 2 unique" in done.stdout and "[m=2]" in done.stdout


def test_many_tables_are_drawn_by_processes_of_their_own_to_the_same_bytes(store: Path, tmp_path: Path) -> None:
    """As a user runs it: in a process whose own file those cannot import."""
    for number, name in enumerate(("table2", "table5", "table6", "table7", "table8", "table9")):
        add_job(store, f"{number:012x}", use("x") | {"experiment": name}, metrics={"top1": 50.0})
    words = [sys.executable, "-m", "reports", "--store", str(store), "--out"]
    for out, cores in (("one", {0}), ("all", os.sched_getaffinity(0))):
        pinned = [
            sys.executable,
            "-c",
            f"import os, sys; os.sched_setaffinity(0, {cores}); os.execv(sys.argv[1], sys.argv[1:])",
        ]
        done = subprocess.run([*pinned, *words, str(tmp_path / out)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert len(files) > 6 * 5 and files == {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}


def test_a_database_says_what_mlflows_client_says(filled: Path) -> None:
    from orchestrate.mirror import sqlite

    add_job(filled, "bbbbbbbbbb03", use("m=4"), metrics={"top1": math.nan})
    mirror.sync(filled)
    uri = mirror.tracking_uri(filled)
    client = connect(uri)
    assert client is not None
    client.delete_run(next(iter(sqlite.runs(filled / "mlflow.db", "jigclu-mini"))).info.run_id)
    for name in ("jigclu-mini", "jigclu-mini-tables"):
        found = client.get_experiment_by_name(name)
        assert found is not None
        theirs, ours = list(client.search_runs([found.experiment_id])), list(sqlite.runs(filled / "mlflow.db", name))
        assert len(ours) == len(theirs) > 3
        for one, other in zip(ours, theirs, strict=True):
            assert one.data.tags == other.data.tags and one.data.params == other.data.params
            assert repr(sorted(one.data.metrics.items())) == repr(sorted(other.data.metrics.items()))  # NaN equals NaN
            assert all(value == getattr(other.info, key) for key, value in vars(one.info).items())
    assert list(sqlite.runs(filled / "mlflow.db", "no-such")) == []


def test_a_pages_links_carry_no_password() -> None:
    assert server("https://me:secret@tracking.example:8080/") == "https://tracking.example:8080"
