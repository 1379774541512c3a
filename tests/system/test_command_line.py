"""What every command line of the suite has in common."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment

DOORS = {
    "jigclu": ("-m", "jigclu_cli"),
    "run.py": ("orchestrate/run.py",),
    "python -m orchestrate": ("-m", "orchestrate"),
    "python -m reports": ("-m", "reports"),
    "python -m jigclu.data": ("-m", "jigclu.data"),
}


def call(tmp_path: Path, *words: str, **more: str) -> tuple[int, str, str]:
    command = [sys.executable, *words]
    values = environment(tmp_path / "runs", **more)
    done = subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("door", DOORS)
def test_every_door_has_a_version_and_a_help_with_examples(door: str, tmp_path: Path) -> None:
    code, out, _ = call(tmp_path, *DOORS[door], "--version")
    assert (code, out.split()[0]) == (0, "jigclu-suite")
    code, out, _ = call(tmp_path, *DOORS[door], "--help")
    assert code == 0 and "JIGCLU_" in out and ("example" in out or door == "jigclu")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("-m", "jigclu_cli", "staus"), "did you mean status?"),
        (("-m", "jigclu_cli", "run", "table8", "--dryrun"), "did you mean --dry-run?"),
        (("orchestrate/run.py", "table8", "--scal=mini"), "did you mean --scale?"),
        (("-m", "orchestrate", "retyr"), "did you mean retry?"),
        (("-m", "orchestrate", "status", "--al"), "did you mean --all?"),
        (("-m", "reports", "--target", "table8"), "did you mean --targets?"),
        (("-m", "jigclu.data", "pack", "imagenette", "--canvass", "32"), "did you mean --canvas?"),
        (("orchestrate/run.py", "table8", "--seeds", "two"), "--seeds"),
        (("-m", "jigclu_cli", "export", "ab12", "encoder.pt"), "there is no store at"),
    ],
)
def test_a_mistyped_word_is_one_line_with_the_nearest_valid_one(
    words: tuple[str, ...], hint: str, tmp_path: Path
) -> None:
    code, out, error = call(tmp_path, *words)
    assert (code, out) == (2, "") and error.count("\n") == 1 and hint in error, error


@pytest.mark.parametrize("door", DOORS)
def test_without_its_packages_every_door_says_what_to_do_in_one_line(door: str, tmp_path: Path) -> None:
    """-S hides site-packages, as for a system's Python."""
    words = ("status",) if door == "python -m orchestrate" else ("run", "table8") if door == "jigclu" else ()
    code, out, error = call(tmp_path, "-S", *DOORS[door], *words)
    assert (code, out) == (2, "") and error.count("\n") == 1, error
    assert "is missing: run `make demo` first, or use .venv/bin/python" in error


@pytest.mark.parametrize("door", ["run.py", "python -m orchestrate", "python -m reports", "python -m jigclu.data"])
def test_ctrl_c_during_imports_is_one_line(door: str, tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("raise KeyboardInterrupt\n")
    code, out, error = call(tmp_path, *DOORS[door], PYTHONPATH=str(tmp_path))
    assert (code, out) == (130, "") and error.endswith(": interrupted\n") and error.count("\n") == 1, error


def test_other_packages_import_only_the_shared_parts_of_the_command() -> None:
    found = set()
    for package in ("jigclu", "orchestrate", "reports", "detection"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jigclu_cli":
                    found.add(node.module)
    assert found == {"jigclu_cli.arguments", "jigclu_cli.guard", "jigclu_cli.output"}
