"""Odd input to every command: damaged files of a store, control characters, files that cannot be written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jigclu.files import UnreadableFile
from jigclu.job_folder import JobFolder
from jigclu_cli.__main__ import main
from jigclu_cli.arguments import mistake
from orchestrate.jobs.staleness import Staleness
from orchestrate.jobs.states import look
from orchestrate.jobs.submissions import submission

TABLE8 = ("run", "table8", "--scale", "smoke", "--cluster", "local", "--dry-run")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one finished pretraining and one probe that has not run."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS", "JIGCLU_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JIGCLU_STORE", str(tmp_path / "runs"))
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    pretraining = JobFolder(tmp_path / "runs" / "pretrain" / "ab12cd34ef56").create()
    pretraining.update_job(stage="pretrain", name="pretrain m=2", upstream=[], experiments=["table8"], uses=[], seed=0)
    (pretraining.path / "encoder.pt").write_bytes(b"weights")
    pretraining.write_result({"loss": 1.0})
    probe = JobFolder(tmp_path / "runs" / "linear" / "ff00aa11bb22").create()
    probe.update_job(stage="linear", name="linear m=2", upstream=[pretraining.id], experiments=["table8"], uses=[])
    return tmp_path / "runs"


def call(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `jigclu` with these words."""
    try:
        code = main(list(words))
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


def refused(words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = call(words, capsys)
    assert (code, out) == (2, "") and error.count("\n") == 1 and expected in error, error


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"uses": 3}, "uses is 3, and must be a list of objects with experiment, cell, metric"),
        ({"uses": [{}]}, "uses is [{}], and must be a list of objects"),
        ({"config": []}, "config is [], and must be an object"),
        ({"upstream": 3}, "upstream is 3, and must be a list of job ids"),
        ({"upstream": [None]}, "upstream is [null], and must be"),
        ({"upstream": ["ff00aa11bb22"]}, "upstream names the job itself"),
        ({"experiments": None}, "experiments is null, and must be a list of texts"),
        ({"name": 5}, "name is 5, and must be a text"),
        ({"seed": -1}, "seed is -1, and must be a whole number from 0"),
        ({"seed": True}, "seed is true, and must be"),
        ({"source_digest": []}, "source_digest is [], and must be a text"),
    ],
)
def test_a_damaged_job_is_named_by_every_command(
    fields: dict[str, Any], message: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store / "linear" / "ff00aa11bb22" / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    for words in (("retry",), ("cancel", "all"), ("clean",)):
        code, _, error = call(words, capsys)
        assert code == 0 and "Traceback" not in error, error
    for verb in ("why", "logs", "cancel"):
        code, out, error = call((verb, "ff00"), capsys)
        assert (code, out) == (2, "") and f"{path}: {message}" in error.splitlines()[-1], error
        assert "`jigclu run` command writes the file again" in error.splitlines()[-1]


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "dancing"}, {"state": []}, {"heartbeat": "soon"}, {"heartbeat": float("nan")}, {"attempts": 3},
        {"attempts": [{}]}, {"attempts": [{"began": "x", "step": 0, "host": "n", "slurm_job_id": None}]},
        {"attempts": [{"began": 1.0, "ended": "x"}]}, {"steps": 5, "epoch": "one"}, {"pid": "x"},
    ],
)  # fmt: skip
def test_a_damaged_status_counts_as_none(
    fields: dict[str, Any], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = JobFolder(store / "linear" / "ff00aa11bb22")
    (probe.path / "status.json").write_text(json.dumps(fields))
    assert probe.status == {}
    assert look([probe])[probe.id].note.startswith(f"status.json: {[*fields][-1]} is ")
    code, out, error = call(("why", "ff00"), capsys)
    assert code == 0 and error == "" and "status.json: " in out


def test_a_status_without_a_heartbeat_is_read(store: Path) -> None:
    """Older versions wrote null for a job that SLURM lost before it wrote a status."""
    probe = JobFolder(store / "linear" / "ff00aa11bb22")
    (probe.path / "status.json").write_text('{"state": "lost", "heartbeat": null, "host": null, "pid": null}')
    assert look([probe])[probe.id].name == "lost" and "heartbeat" not in probe.status


@pytest.mark.parametrize("fields", [{"estimate_hours": "long"}, {"group": 3}, {"share": -1}, {"submitted": None}])
def test_a_damaged_submission_counts_as_none(fields: dict[str, Any], store: Path) -> None:
    probe = JobFolder(store / "linear" / "ff00aa11bb22")
    (probe.path / "submission.json").write_text(json.dumps(fields))
    assert submission(probe) == {}


@pytest.mark.parametrize("fields", [{"world": "x"}, {"seconds": "long"}, {"finished": float("nan")}, {"by_lr": []}])
def test_a_damaged_result_is_none(fields: dict[str, Any], store: Path) -> None:
    job = JobFolder(store / "pretrain" / "ab12cd34ef56")
    (job.path / "result.json").write_text(json.dumps(job.result | fields))
    assert not job.done and job.problems[0].startswith(f"result.json: {next(iter(fields))} is ")


def test_jobs_that_name_each_other_as_upstream_end_the_search(store: Path) -> None:
    first, second = JobFolder(store / "pretrain" / "ab12cd34ef56"), JobFolder(store / "pretrain" / "0123456789ab")
    second.create().update_job(stage="pretrain", upstream=[first.id])
    second.write_result({"loss": 1.0})
    first.update_job(upstream=[second.id])
    assert Staleness().reason(first) != "never"


def test_a_job_whose_record_lacks_fields_is_not_retried(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = JobFolder(store / "linear" / "ff00aa11bb22")
    probe.set_status("failed", message="it broke")
    refused(("retry",), "job ab12cd34ef56 was planned by a different code version", capsys)


def test_a_status_that_is_a_link_to_itself_is_written_again(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store / "linear" / "ff00aa11bb22" / "status.json"
    path.symlink_to(path)
    for words in (("why", "ff00"), ("status",)):
        assert main(list(words)) == 0 and "ff00aa11bb22" in capsys.readouterr().out
    JobFolder(path.parent).set_status("failed", message="x")
    assert not path.is_symlink() and JobFolder(path.parent).status["state"] == "failed"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((*TABLE8, "--set", "pretrain.epo\nchs=3"), r"unknown key pretrain.epo\nchs"),
        ((*TABLE8, "--set", "pretrain.epo\x1bchs=3"), r"unknown key pretrain.epo\x1bchs"),
        (("run", "table8", "--foo\x1b[31m"), r"unknown option --foo\x1b[31m"),
        (("status\n",), r"unknown command status\n; did you mean status?"),
        (("",), "unknown command ''; valid: run, "),
        (("run", "table8", "--cluster", "x" * 5000, "--dry-run"), "File name too long"),
        (("data", "check", "imagenette", "--root", "x" * 5000), "File name too long"),
        (("retry", "--scale", "mini"), "jigclu retry: unknown option --scale"),
        (("why", "ab12", "ff00"), "jigclu why: unknown argument ff00; see --help"),
        (("mlflow", "--port", "80.5"), "--port must be a whole number from 1 to 65535, not '80.5'"),
        (("mlflow", "--port", "-1"), "--port must be at least 1, not -1"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: tuple[str, ...], expected: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(store.rglob("*"))
    refused(words, expected, capsys)
    assert sorted(store.rglob("*")) == before


def test_a_mistake_is_one_line_of_printable_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake("jigclu", UnreadableFile("a\r\n\tb\u202e\x9b ü")) == 2
    assert capsys.readouterr().err == "jigclu: a\\r\\n\\tb\\u202e\\x9b ü\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("setup: " + "[" * 3000 + "]" * 3000, "setup.0: text is expected"),
        ('partition: ""', "partition: a text of one line is expected, or null for the site's default (got '')"),
        ('account: "a\\nrm -rf /"', "account: a text of one line is expected"),
        ('setup: ["a\\0b"]', "setup.0: a line of shell is expected"),
        ('options: {reservation: "a\\nb"}', "options.reservation: a text of one line is expected"),
        ("options: {--exclusive: true}", "options: '--exclusive' is no long name of an sbatch option"),
        ('options: {"": x}', "options: '' is no long name of an sbatch option"),
        ("options: {J: x}", "options: 'J' is no long name of an sbatch option"),
        ("options: {depend: x}", "options: depend would be read as dependency; write the option's whole name"),
        ("options: {3: x}", "options.3: keys must be text"),
    ],
)
def test_a_cluster_file_adds_no_lines_to_the_script(
    text: str, expected: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = store.parent / "site.yaml"
    site.write_text(f"kind: slurm\n{text}\n")
    refused(("run", "table8", "--cluster", str(site), "--dry-run"), expected, capsys)


def test_an_export_that_fails_leaves_no_file(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", full)
        refused(("export", "ab12", "weights.pt"), "cannot write weights.pt: No space left on device", capsys)
    assert not Path("weights.pt").exists()
    encoder = store / "pretrain" / "ab12cd34ef56" / "encoder.pt"
    encoder.write_bytes(b"")
    refused(("export", "ab12", "weights.pt"), f"{encoder} is empty", capsys)
    encoder.write_bytes(b"weights")
    assert call(("export", "ab12", "weights.pt"), capsys)[0] == 0 and Path("weights.pt").read_bytes() == b"weights"
    refused(("export", "ab12", "weights.pt"), "cannot write weights.pt: File exists", capsys)
    assert Path("weights.pt").read_bytes() == b"weights"
