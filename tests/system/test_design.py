"""The house's rules, held by reading every source file and by importing for real."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment

PACKAGES = ("jigclu", "orchestrate", "reports", "detection", "benchmarks")
FORBIDDEN = {
    "jigclu": {"orchestrate", "reports", "detection", "benchmarks", "mlflow", "submitit", "detectron2"},
    "orchestrate": {"torch", "torchvision", "reports", "detection", "benchmarks", "detectron2"},
    "reports": {"torch", "torchvision", "submitit", "detection", "benchmarks", "detectron2"},
    "detection": {"orchestrate", "reports", "benchmarks", "mlflow", "submitit"},
}
PLANNING = ("torch", "torchvision", "mlflow", "submitit", "pandas", "matplotlib")


def files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def modules(package: str) -> list[str]:
    """Its modules' dotted names, those that run when imported (__main__) left out."""
    named = [path.relative_to(ROOT).with_suffix("").parts for path in files(package)]
    return [".".join(parts).removesuffix(".__init__") for parts in named if parts[-1] != "__main__"]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(top-level name, line) of everything that the file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}:{node.lineno}: a relative import"
            yield node.module.split(".")[0], node.lineno


def loaded_by(code: str, suspects: tuple[str, ...]) -> list[str]:
    """Which of the suspects are in a fresh interpreter after it ran the code."""
    code = f"{code}\nimport sys; print(*sorted(set({suspects!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(ROOT / "runs"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_names_what_it_must_not_know(package: str) -> None:
    found = [(str(path), line, name) for path in files(package) for name, line in imported(path)]
    assert [place for place in found if place[2] in FORBIDDEN[package]] == []


def test_the_scan_sees_what_is_there() -> None:
    """The scans above and below would pass on an empty list: they do not read one."""
    assert {"torch", "jigclu"} <= {name for path in files("jigclu") for name, _ in imported(path)}
    assert {"mlflow", "submitit", "jigclu"} <= {name for path in files("orchestrate") for name, _ in imported(path)}
    assert {"pandas", "orchestrate"} <= {name for path in files("reports") for name, _ in imported(path)}
    assert len(modules("jigclu")) > 20 and "orchestrate.run" in modules("orchestrate")


def test_planning_loads_nothing_heavy() -> None:
    assert loaded_by("import orchestrate.planning.plan, orchestrate.run", PLANNING) == []


@pytest.mark.parametrize("package", ["orchestrate", "reports"])
def test_importing_all_of_it_loads_no_torch(package: str) -> None:
    assert loaded_by(f"import {', '.join(modules(package))}", ("torch", "torchvision", "detectron2")) == []


def test_importing_all_of_jigclu_loads_no_orchestration() -> None:
    suspects = ("torch", "orchestrate", "reports", "detection", "mlflow", "submitit", "detectron2")
    assert loaded_by(f"import {', '.join(modules('jigclu'))}", suspects) == ["torch"]


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in files(*PACKAGES):
        text = path.read_text()
        lines = len(text.splitlines())
        long += [f"{path}: {lines} lines"] if lines >= 400 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path}:{node.lineno} {node.name}: {lines} lines"] if lines >= 70 else []
    assert long == []


def test_every_module_says_what_it_is_for() -> None:
    texts = {str(path): path.read_text() for path in files(*PACKAGES)}
    assert [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))] == []


def test_an_experiment_file_is_short_and_begins_with_its_claim() -> None:
    paths = sorted((ROOT / "experiments").glob("*.yaml"))
    assert paths
    for path in paths:
        lines = path.read_text().splitlines()
        assert len(lines) <= 40 and lines[0].startswith("# "), path
