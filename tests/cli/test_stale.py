"""Results of other code or other data: shown as stale, explained, and run again with --rerun-stale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.orchestrator import PRETRAIN, PROBE, RANDOM, borrow, named, prepared_store, run, table8, whole_table

from orchestrate import run as orchestrator
from orchestrate.jobs.staleness import EARLIER, Staleness, set_aside


@pytest.fixture
def finished(tmp_path: Path, template: Path) -> Path:
    """A copy of the store of a whole tiny Table 8."""
    whole, _ = whole_table(template)
    store = prepared_store(tmp_path / "runs", template)
    borrow(whole, store, but=[])
    return store


def reasons(store: Path) -> dict[str, str]:
    staleness = Staleness()
    return {name: staleness.reason(named(store, name)) for name in (PRETRAIN, PROBE, RANDOM)}


def test_a_result_of_other_code_or_data_is_stale_and_so_are_its_dependents(finished: Path) -> None:
    assert set(reasons(finished).values()) == {""}
    named(finished, RANDOM).update_job(data_fingerprint="0+0")
    encoder = named(finished, PRETRAIN)
    encoder.update_job(source_digest="0" * 12)
    assert reasons(finished) == {
        PRETRAIN: "made by a different code version",
        PROBE: f"upstream {encoder.id} is stale",
        RANDOM: "the data has changed",
    }


def test_a_result_from_an_encoder_that_was_made_again_is_stale(finished: Path) -> None:
    encoder = named(finished, PRETRAIN)
    encoder.write_result(encoder.result["metrics"])
    assert set(reasons(finished).values()) == {""}  # the same weights
    (encoder.path / "encoder.pt.sha256").write_text("0" * 64)
    stale = {PRETRAIN: "", PROBE: f"the encoder of upstream {encoder.id} has changed", RANDOM: ""}
    assert reasons(finished) == stale
    named(finished, PROBE).edit_job(lambda job: {**job, "encoder_digest": None})  # as older versions left it
    assert reasons(finished) == stale | {PROBE: f"upstream {encoder.id} was run again later"}


def test_a_result_is_set_aside_whole(finished: Path) -> None:
    job = named(finished, PRETRAIN)
    before = {
        name: (job.path / name).read_bytes() for name in ("result.json", "metrics.jsonl", "encoder.pt", "job.json")
    }
    set_aside([job])
    (kept,) = (job.path / EARLIER).iterdir()
    assert {name: (kept / name).read_bytes() for name in before} == before
    assert not job.done and not (job.path / "encoder.pt").exists() and list(job.metrics()) == []
    assert job.status["state"] == "pending" and "attempts" not in job.status and (job.path / "figures").is_dir()


def test_rerun_stale_runs_exactly_the_stale_jobs_again(finished: Path) -> None:
    job = named(finished, RANDOM)
    job.update_job(data_fingerprint="0+0")
    others = {path: path.stat().st_mtime_ns for path in finished.glob("*/*/result.json") if path.parent != job.path}
    done = run(finished, [*table8(), "--dry-run"])
    assert done.returncode == 0 and "stale" in done.stdout, done.stdout + done.stderr
    done = run(finished, table8())
    assert done.returncode == 0 and "all 7 jobs are done already" in done.stdout, done.stdout + done.stderr
    assert "stale: 1 of them" in done.stdout and "--rerun-stale" in done.stdout, done.stdout
    old = job.result
    done = run(finished, [*table8(), "--rerun-stale"])
    assert done.returncode == 0 and f"done     {job.id}" in done.stdout, done.stdout + done.stderr
    assert job.result["metrics"] == old["metrics"] and job.result["finished"] > old["finished"]
    (kept,) = (job.path / EARLIER).iterdir()
    assert json.loads((kept / "result.json").read_text()) == old and reasons(finished)[RANDOM] == ""
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert len(job.status["attempts"]) == 1


def test_rerun_stale_also_begins_half_done_jobs_again_that_used_a_stale_encoder(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, probe = named(finished, PRETRAIN), named(finished, PROBE)
    encoder.update_job(source_digest="0" * 12)
    (probe.path / "result.json").unlink()
    probe.set_status("interrupted")
    (probe.path / "checkpoint" / "step-2.pt").write_text("x")
    monkeypatch.setenv("JIGCLU_STORE", str(finished))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    planned = orchestrator.prepare(orchestrator.parser().parse_args([*table8(), "--rerun-stale"]))
    assert {encoder.id, probe.id} <= set(orchestrator.again(planned))
    set_aside([probe])
    assert [path.name for path in (probe.path / EARLIER).glob("*/checkpoint/*")] == ["step-2.pt"]
    assert not list((probe.path / "checkpoint").iterdir()) and probe.status["state"] == "pending"
