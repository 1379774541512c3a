"""The report beside its tables: register of ambiguities, cost, stale jobs, tags in MLflow; incomplete stores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import environment
from helpers.report import ROOT, add_job, run, use

from jigclu.config import ConfigError
from jigclu.files import write_json
from orchestrate import mirror
from orchestrate.jobs.snapshot import stage_digest
from orchestrate.mirror.address import server
from orchestrate.mirror.store import connect
from orchestrate.mirror.views import views
from orchestrate.planning import experiments
from reports.page import register

PRETRAIN, OFFICIAL, PRINTED, OTHER = "aaaaaaaaaa00", "bbbbbbbbbb00", "bbbbbbbbbb01", "bbbbbbbbbb02"


@pytest.fixture
def filled(store: Path) -> Path:
    """Table 8's m=2 under both protocols by the current code, and m=3 by a different code version, on one pretraining."""
    current = {stage: stage_digest(stage) for stage in ("pretrain", "linear")}
    folder = add_job(store, PRETRAIN, metrics={"loss": 3.5}, source_digest=current["pretrain"], data_fingerprint="f00d")
    write_json(folder.path / "submission.json", {"cluster": "local", "estimate_hours": 0.05})
    for job, cell, protocol, top1 in ((OFFICIAL, "m=2", "official", 46.2), (PRINTED, "m=2", "paper", 44.1)):
        more = {"protocol": protocol, "upstream": [PRETRAIN], "source_digest": current["linear"]}
        add_job(store, job, use(cell, protocol=protocol), metrics={"top1": top1, "val_images": 400}, **more)
    add_job(store, OTHER, use("m=3"), metrics={"top1": 40.0}, upstream=[PRETRAIN], source_digest="0ldc0de")
    return store


def tags_of(store: Path, experiment: str, tag: str) -> dict[str, str]:
    """Run name -> the tag's value, for runs that have one."""
    client = connect(mirror.tracking_uri(store))
    assert client is not None
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    return {str(run.info.run_name): run.data.tags[tag] for run in runs if run.data.tags.get(tag)}


def test_the_register_shows_both_readings_if_both_were_run(filled: Path, tmp_path: Path) -> None:
    run(filled, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "table8 m=2 at mini: official 46.2, paper 44.1" in page
    assert "table8 (mini, official): m=2 46.2, m=3 40.0" in page
    ids = [*(f"D{n}" for n in range(1, 21)), *(f"B{n}" for n in range(1, 11)), "S1", "S2", "S3"]
    assert all(f'<div id="{name}">' in page for name in ids)


def test_every_point_of_the_register_names_cells_that_exist() -> None:
    ledger = experiments.load_all()
    for entry in register.read_entries(register.REGISTER):
        for name, keys in entry.both.items() if isinstance(entry.both, dict) else ():
            assert set(keys) <= {cell.key for cell in ledger[name].all_cells}, entry.id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- [", "register.yaml:2: not YAML"),
        ("", "register.yaml: a list is expected"),
        ("- {id: D1, what: a, code: b, here: c}", "register.yaml.0.paper is missing"),
        ("- {id: D1, what: a, ppaper: x, code: b, here: c}", "unknown key register.yaml.0.ppaper"),
        (
            "- {id: D1, what: a, paper: x, code: b, here: c, both: all}",
            "register.yaml: D1: both must be protocols, see",
        ),
    ],
)
def test_a_damaged_register_is_named_in_one_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "register.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        register.read_entries(tmp_path / "register.yaml")
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_the_page_compares_estimated_and_spent_hours(filled: Path, tmp_path: Path) -> None:
    found = run(filled, tmp_path / "out")["run"]
    assert found["device_hours"] == {"CPU": 0.1} and found["seeds"] == ["0"]  # four jobs of 90 s
    page = (tmp_path / "out" / "index.html").read_text()
    assert (
        "<td>0.1 CPU-h</td><td>0.05 CPU-h (1 of 4 jobs)</td><td>0.025 CPU-h</td><td>0.50</td>" in page
    )  # 90 s, estimated as 180 s
    assert "not estimated" in page


def test_a_result_of_a_different_code_version_is_stale_on_the_page_and_in_mlflow(filled: Path, tmp_path: Path) -> None:
    assert run(filled, tmp_path / "out")["run"]["stale"] == 1
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"jigclu why {OTHER}" in page and f"jigclu why {OFFICIAL}" not in page
    assert list(tags_of(filled, "jigclu-mini", "jigclu.stale")) == [f"linear resnet18 imagenette {OTHER} seed 0"]


def test_mlflow_has_verdicts_claims_and_the_views_and_a_second_report_writes_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job(store, OFFICIAL, use("m=2", "paper"), scale="paper", metrics={"top1": 80.7, "val_images": 5000})
    run(store, tmp_path / "out")
    assert tags_of(store, "jigclu-paper-tables", "jigclu.verdict") == {"table8 m=2": "reproduced"}
    assert tags_of(store, "jigclu-paper-tables", "jigclu.claims") == {"table8 official": "2 not run"}
    from mlflow import MlflowClient

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
            MlflowClient, call, lambda *args, call=call, **more: written.append(f"{call} {args} {more}")
        )
    run(store, tmp_path / "out")
    assert written == []
    add_job(store, OTHER, use("m=3", "paper"), scale="paper", metrics={"top1": 60.0, "val_images": 5000})
    monkeypatch.undo()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run(store, tmp_path / "out")
    verdicts = tags_of(store, "jigclu-paper-tables", "jigclu.verdict")
    assert verdicts["table8 m=2"] == "reproduced" and verdicts["table8 m=3"].startswith("off by")


def test_runs_of_an_older_mirror_get_the_tags_of_a_newer_one(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrate.mirror import job_sync

    mirror.sync(filled)
    assert mirror.sync(filled).changed == 0
    fingerprints = tags_of(filled, "jigclu-mini", "jigclu.data_fingerprint")
    assert list(fingerprints.values()) == ["f00d"]
    current_spec = job_sync.job_run_spec
    monkeypatch.setattr(job_sync, "FORM", job_sync.FORM + 1)

    def newer_spec(folder: Path) -> Any:
        spec = current_spec(folder)
        spec.tags["jigclu.new"] = "here"
        return spec

    monkeypatch.setattr(job_sync, "job_run_spec", newer_spec)
    mirror.sync(filled)
    assert len(tags_of(filled, "jigclu-mini", "jigclu.new")) == 4


def test_a_deleted_job_folder_leaves_a_page_that_says_what_is_missing(filled: Path, tmp_path: Path) -> None:
    run(filled, tmp_path / "before")
    shutil.rmtree(filled / "linear" / OTHER)
    shutil.rmtree(filled / "pretrain")
    after = run(filled, tmp_path / "after")
    found = {(cell["cell"], cell["protocol"]): cell for cell in after["cells"]}
    assert found["m=2", "official"]["value"] == 46.2
    assert found["m=3", "official"]["state"] == "not run" and found["m=3", "official"]["value"] is None
    page = (tmp_path / "after" / "index.html").read_text()
    missing = "m = 3; m = 4; random init; random init, BN calibrated; 3, cell share; 4, cell share"
    assert f"Not run: {missing}. To run what is missing:" in " ".join(page.split())


def test_a_job_whose_upstream_is_not_in_mlflow_says_so_and_links_nowhere(store: Path, tmp_path: Path) -> None:
    add_job(store, OFFICIAL, use("m=2"), metrics={"top1": 46.2}, upstream=["cccccccccc99"])
    run(store, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "cccccccccc99 (not in MLflow)" in page and 'href="#job-cccccccccc99"' not in page


def test_the_command_of_a_cell_plans_only_that_cell(filled: Path, tmp_path: Path) -> None:
    cells = run(filled, tmp_path / "out")["cells"]
    command = next(cell["command"] for cell in cells if (cell["cell"], cell["protocol"]) == ("m=2", "paper"))
    assert command == "jigclu run table8 --scale mini --protocol paper --cells m=2"
    words = [sys.executable, "-m", "jigclu_cli", *command.split()[1:], "--dry-run"]
    done = subprocess.run(words, cwd=ROOT, env=environment(tmp_path / "empty"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 jobs, 0 done" in done.stdout and "[m=2]" in done.stdout


def test_many_tables_are_drawn_by_worker_processes_to_the_same_bytes(store: Path, tmp_path: Path) -> None:
    """Run as a user runs it: as a main module, which worker processes cannot import."""
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


def test_links_on_the_page_carry_no_password() -> None:
    assert server("https://me:secret@tracking.example:8080/") == "https://tracking.example:8080"
