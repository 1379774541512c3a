"""What users typed wrongly: one line that helps, exit code 2, no traceback, and nothing made."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment

from jigclu_cli.__main__ import main
from orchestrate.run import parser

TABLE8 = ("run", "table8", "--scale", "smoke", "--cluster", "local")


def values(*settings: str) -> tuple[str, ...]:
    return (*TABLE8, *(word for setting in settings for word in ("--set", setting)))


WRONG: list[tuple[tuple[str, ...], str]] = [
    # numbers
    ((*TABLE8, "--budget", "nan"), "--budget must be a number from 0, not 'nan'"),
    ((*TABLE8, "--budget=-1"), "--budget must be at least 0"),
    ((*TABLE8, "--budget", "many"), "--budget must be a number from 0, not 'many'"),
    ((*TABLE8, "--seeds", "100000", "--dry-run"), "--seeds must be at most 1000, not 100000"),
    ((*TABLE8, "--seeds", "two"), "--seeds must be a whole number from 1 to 1000, not 'two'"),
    ((*TABLE8, "--seeds", "1e3"), "--seeds must be a whole number from 1 to 1000, not '1e3'"),
    ((*TABLE8, "--seeds", "0"), "--seeds must be at least 1, not 0"),
    ((*TABLE8, "--jobs", "99999"), "--jobs must be at most 512, not 99999"),
    ((*TABLE8, "--gpus", "inf", "--dry-run"), "--gpus must be a whole number from 1 to 100000, not 'inf'"),
    (("run", "all", "--scale", "smoke", "--seeds", "1000", "--dry-run"), "at most 20000 are planned at once"),
    (("retry", "--jobs", "0"), "--jobs must be at least 1, not 0"),
    (("mlflow", "--port", "70000"), "--port must be at most 65535, not 70000"),
    (("data", "pack", "imagenette", "--canvas", "1000000000"), "--canvas must be at most 10000, not 1000000000"),
    (("data", "pack", "imagenette", "--quality", "0"), "--quality must be at least 1, not 0"),
    (("data", "pack", "imagenette", "--workers", "all"), "--workers must be a whole number from 0 to 1024, not 'all'"),
    (values("pretrain.epochs=yes"), "pretrain.epochs: a whole number is expected (got true, or yes)"),
    (values("pretrain.epochs='5'"), "pretrain.epochs: a whole number is expected (got '5')"),
    (values("pretrain.epochs=2.5"), "pretrain.epochs: a whole number is expected (got 2.5)"),
    (values("pretrain.optimizer.lr=inf"), "pretrain.optimizer.lr: a number is expected (got 'inf')"),
    (values("pretrain.optimizer.lr=.inf"), "pretrain.optimizer.lr: a finite number is expected (got inf)"),
    (values("pretrain.optimizer.lr=.nan"), "pretrain.optimizer.lr: a finite number is expected (got nan)"),
    (values("pretrain.optimizer.lr=1e400"), "pretrain.optimizer.lr: a finite number is expected"),
    (values("linear.milestones=[0.5, true]"), "linear.milestones.1: a number is expected"),
    (values("pretrain.image_size=1e8"), "pretrain.image_size: a whole number is expected"),
    (values("pretrain.image_size=100000000"), "pretrain.image_size: must be less than or equal to 10000"),
    (values("pretrain.batch_size=999999999"), "pretrain.batch_size: must be less than or equal to 100000"),
    (values("pretrain.data.canvas=99999"), "pretrain.data.canvas: must be less than or equal to 10000"),
    (values("pretrain.epochs=" + "9" * 5000), "not a YAML value"),
    (values("pretrain.image_size=1"), "image_size 1 gives patches of 0 pixels; at least 8 are needed"),
    (values("pretrain.batch_size=99999"), "images do not fill one batch of 99999"),
    # forms in words
    (values("pretrain.augment.blur_sigma=5"), "two numbers are expected, as in [0.1, 2.0] (got 5)"),
    (values("pretrain.method.name=simclr"), "--set cannot change pretrain.method.name: the method belongs to the cell"),
    (values("pretrain.method=simclr"), "the method belongs to the cell"),
    (values("pretrain.method.m=2"), "the cells of table8 differ in this value; choose cells with --cells"),
    (values("pretrain.optimizer=3"), "a mapping is expected of lr, momentum, weight_decay (got 3)"),
    (values("pretrain.epochs="), "no value after the ="),
    (values("pretrain..epochs=3"), "an empty name in 'pretrain..epochs'"),
    (values("pretrain.epochs=2026-13-01"), "not a YAML value: month must be in 1..12"),
    (values("pretrain.epochs=3", "pretrain.epochs=4"), "--set pretrain.epochs is given twice"),
    (values("pretrain.epochs=&a [*a]"), "not a YAML value"),
    # names
    ((*TABLE8, "--cells", "m=2,m=3"), "separate cells by spaces, --cells m=2 m=3"),
    ((*TABLE8, "--cells", "both"), "no cell 'both' in table8; table9 has it"),
    ((*TABLE8, "--cells", "table9"), "it is an experiment: write experiments before the options"),
    (("run", "m=2"), "did you mean table8 --cells m=2?"),
    (("run", "table8,table9"), "separate experiments by spaces: table8 table9"),
    (("run", "TABLE8"), "did you mean table8?"),
    (("run", "tabel8"), "did you mean table8? valid: "),
    (("run", "--cells", "m=2", "table8"), "'table8' was read as a cell; write experiments before the options"),
    (
        ("run", "--set", "pretrain.epochs=2", "table8"),
        "'table8' was read as a setting; write experiments before the options",
    ),
    (
        ("run", "table8", "--scale", "smoke", "table9"),
        "unknown argument table9; write each EXPERIMENT before the options",
    ),
    (("run", "table8", "--dryrun"), "did you mean --dry-run?"),
    (("run", "table8", "--scal", "mini"), "did you mean --scale?"),
    (("run", "table8", "--scale", "MINI"), "did you mean mini?"),
    (("run", "table8", "--scale"), "--scale needs a value"),
    (("run", "table8", "--cells"), "--cells needs at least one value"),
    (("run", "table8", "--cluster", "SLURM"), "did you mean slurm?"),
    (("run", "table8", "--cluster", "site.yaml"), "cluster file site.yaml: there is no such file"),
    (("run", "table8", "--cluster", "."), "cluster .: a YAML file is expected, and this is none"),
    (("run", "table8", "--cluster", ""), "--cluster is empty"),
    (("statsu",), "did you mean status?"),
    (("data", "chekc", "all"), "did you mean check?"),
    (("data", "check", "Imagenette"), "did you mean imagenette?"),
    # options that exclude each other, or mean nothing
    (("run", "--list", "extra"), "--list lists all experiments and takes nothing else; leave out extra"),
    (("run", "--list", "--dry-run"), "leave out --dry-run"),
    (("run", "--list=3"), "--list takes no value (got '3')"),
    ((*TABLE8, "--wait", "--no-wait"), "--wait and --no-wait exclude each other: choose one"),
    ((*TABLE8, "--gpus", "4"), "--gpus is a number for the estimate of --dry-run"),
    # stores
    (("status",), "there is no store at "),
    (("why", "abcd"), "there is no store at "),
    (("why",), "JOB is missing"),
    (("export", "abcd", "encoder.pt"), "there is no store at "),
    (("report", "--store", "nostore"), "there is no store at "),
    (("report", "--store", "/etc/passwd"), "the store /etc/passwd cannot be read (Not a directory)"),
    (("report", "--store", "/etc"), "/etc is no store: it has other files"),
    (("report", "--store", ".", "--out", "/proc/x"), "cannot write to /proc/x ("),
    (("report", "--scale", "mini,smoke"), "separate scales by spaces"),
    (("report", "--targets", "table8,table9"), "separate experiments by spaces: table8 table9"),
]


@pytest.mark.parametrize(("words", "expected"), WRONG, ids=[" ".join(words)[:60] for words, _ in WRONG])
def test_a_wrong_command_is_one_helpful_line(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main sets it
    for name in ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS", "JIGCLU_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JIGCLU_STORE", str(tmp_path / "runs"))
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    try:
        code = main(list(words))
    except SystemExit as end:
        code = int(end.code or 0)
    out, error = capsys.readouterr()
    assert (code, out) == (2, ""), out + error
    assert error.startswith("jigclu") and error.count("\n") == 1 and expected in error, error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("why", "ab"), "'ab' is too short: give at least 4 characters of a job's id"),
        (("why", "zzzz"), "'zzzz' is no job of the store"),
        (
            ("why", "abcd"),
            "has the id 'abcd' (at least 4 characters, or SLURM's id); `jigclu status --all` lists the jobs",
        ),
        (("logs", "zzzz"), "`jigclu status --all` lists the jobs"),
        (("status", "tabel8"), "did you mean table8?"),
        (("status", "table1"), "run it first: jigclu run table1"),
        (("retry", "--cluster", "foo"), "unknown cluster 'foo'"),
        (("cancel",), "name a job, an experiment or all"),
        (("export", "zzzz", "encoder.pt"), "'zzzz' is no job of the store"),
    ],
)
def test_a_wrong_word_about_jobs_is_one_helpful_line(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("JIGCLU_STORE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(list(words)) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"jigclu {words[0]}: ") and error.count("\n") == 1, error
    assert expected in error and "topic" not in error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: slurm\npartition: cpu\npartition: gpu\n", "site.yaml:3: the key 'partition' appears twice (first in line 2)"),
        ("kind: slurm\nstages: {linear: {nodes: 1, nodes: 2}}\n", "site.yaml:2: the key 'nodes' appears twice"),
        ("kind: slurm\nmem_gb: .nan\n", "mem_gb: a finite number is expected (got nan)"),
        ("kind: slurm\nmem_gb: .inf\n", "mem_gb: a finite number is expected (got inf)"),
        ("kind: slurm\nnodes: true\n", "nodes: a whole number is expected (got true, or yes)"),
        ("kind: slurm\nminutes: 99999999\n", "minutes: must be less than or equal to 525600"),
        ("kind: slurm\nnodes: 1000000\n", "nodes: must be less than or equal to 100000"),
        ("partition: gpu\n", "kind is missing; valid: local, slurm"),
        ("kind: slurm\npath: x\n", "unknown key path"),
        ("kind: slurm\n? [1]\n: 2\n", "not YAML: found unhashable key"),
        ("kind: \x00\n", "not YAML: "),
    ],
)  # fmt: skip
def test_a_wrong_cluster_file_is_one_line_with_its_place(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("JIGCLU_STORE", str(tmp_path / "runs"))
    (tmp_path / "site.yaml").write_text(text)
    assert main(["run", "table8", "--cluster", str(tmp_path / "site.yaml"), "--dry-run"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and expected in error, error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "store", "expected"),
    [
        (("--scale", "mini"), "runs", "would stop: data set imagenette: looked in "),
        (("--scale", "smoke", "--set", "pretrain.image_size=1"), "runs", "would stop: pretrain resnet10 textures m=2"),
        (("--scale", "smoke", "--set", "pretrain.batch_size=99999"), "runs", "do not fill one batch of 99999"),
        (("--scale", "smoke"), "/sys/runs", "would stop: the store /sys/runs is not writable"),
        (("--scale", "smoke"), "/etc", "would stop: /etc is no store: it has other files"),
    ],
)
def test_the_dry_run_says_what_would_stop_the_run_and_makes_nothing(
    words: tuple[str, ...], store: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("JIGCLU_STORE", str(tmp_path / store))
    monkeypatch.setenv("JIGCLU_DATA", str(tmp_path / "data"))
    assert main(["run", "table8", "--cluster", "local", "--dry-run", *words]) == 0
    assert expected in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_number_of_threads_in_the_environment_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("JIGCLU_STORE", str(tmp_path / "runs"))
    monkeypatch.setenv("JIGCLU_THREADS", "two")
    assert main(list(TABLE8)) == 2
    assert "JIGCLU_THREADS must be a whole number from 1 to 4096, not 'two'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_settings_may_share_an_option_or_have_their_own() -> None:
    given = parser().parse_args(["table8", "--set", "pretrain.epochs=2", "linear.epochs=3", "--set", "linear.lr=1"])
    assert given.set == ["pretrain.epochs=2", "linear.epochs=3", "linear.lr=1"]


READY = """import runpy, sys
from jigclu_cli.guard import guard_imports
guard_imports("jigclu")
print("ready", flush=True)
door = sys.argv.pop(1)
if door.endswith(".py"):
    sys.argv[0] = door
    runpy.run_path(door, run_name="__main__")
else:
    runpy.run_module(door, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("door", ["jigclu_cli", "orchestrate/run.py", "reports"])
def test_ctrl_c_at_any_moment_is_one_line(door: str, seconds: float, tmp_path: Path) -> None:
    """From the guard on; before it Python itself starts."""
    (tmp_path / "runs").mkdir()
    words = ["run"] * (door == "jigclu_cli")
    words += (
        ["all", "--seeds", "100", "--scale", "smoke", "--dry-run"]
        if door != "reports"
        else ["--out", str(tmp_path / "out")]
    )
    child = subprocess.Popen(
        [sys.executable, "-c", READY, door, *words], cwd=ROOT, env=environment(tmp_path / "runs"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert child.stdout and child.stdout.readline() == "ready\n"
    time.sleep(seconds)
    child.send_signal(signal.SIGINT)
    error = child.communicate()[1]
    assert child.returncode == 130 and error.count("\n") == 1 and "Traceback" not in error, error
