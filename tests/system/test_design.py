"""Architecture rules, checked by reading every source file and by importing for real."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment

PACKAGES = ("jigclu", "jigclu_cli", "orchestrate", "reports", "detection", "benchmarks")
FORBIDDEN = {
    "jigclu_cli": {"jigclu", "orchestrate", "reports", "detection", "benchmarks", "torch", "pydantic", "numpy"},
    "jigclu": {"orchestrate", "reports", "detection", "benchmarks", "mlflow", "submitit", "detectron2"},
    "orchestrate": {"torch", "torchvision", "reports", "detection", "benchmarks", "detectron2"},
    "reports": {"torch", "torchvision", "submitit", "detection", "benchmarks", "detectron2"},
    "detection": {"orchestrate", "reports", "benchmarks", "mlflow", "submitit"},
}
PLANNING = ("torch", "torchvision", "mlflow", "submitit", "pandas", "matplotlib")
# Lowest first: a module imports from its own package and from lower layers only.
LAYERS = {
    "orchestrate": (
        ("console",),
        ("planning", "submitit_bridge"),
        ("jobs", "clusters"),
        ("cost", "mirror"),
        ("worker", "preflight"),
        ("slurm", "local"),
        ("cli",),
        ("run", "__main__"),
    ),
    "jigclu": (
        ("files", "config"),
        ("job_folder", "counter_rng", "patches", "resample", "losses"),
        ("augment", "montage", "network"),
        ("data",),
        ("training",),
        ("evaluation",),
        ("figures",),
        ("methods",),
        ("stages",),
    ),
    "reports": (
        ("statistics",),
        ("records",),
        ("control", "formatting", "recipes"),
        ("verdicts", "frames"),
        ("assemble", "tables"),
        ("figures", "export"),
        ("table_files", "publish", "page"),
        ("build",),
        ("__main__",),
    ),
}
# Words that no colleague would say, in parts, so that this file does not contain them.
QUAINT = [
    first + second
    for first, second in (
        ("to", "ld"), ("ou", "rs"), ("li", "es"), ("judg", "ed"), ("mend", "ed"), ("hea", "rs"), ("nou", "ght"),
        ("gone ", "on from"),
        ("goes ", "on"), ("go ", "on"), ("hangs ", "on"), ("by them", "selves"), ("thr", "ice"), ("who", "ever"), ("of be", "fore"),
        ("today", "'s"), ("here", "after"),
    )
]  # fmt: skip


def files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules(package: str) -> list[str]:
    """The dotted names of its modules, except those that run when imported (__main__)."""
    return [dotted(path) for path in files(package) if path.name != "__main__.py"]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(top-level name, line) of everything that the file imports, in functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}:{node.lineno}: a relative import"
            yield node.module.split(".")[0], node.lineno


@cache
def graph() -> dict[str, set[str]]:
    """module -> the modules of the project that it imports, in functions and for type checking too."""
    names = {dotted(path): path for path in files(*PACKAGES)}
    edges: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                members = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found.update(full if full in names else node.module for full in members.values())
        edges[name] = found & names.keys() - {name}
    return edges


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


def test_no_module_imports_from_a_higher_layer() -> None:
    upward = []
    for package, layers in LAYERS.items():
        layer = {f"{package}.{name}": number for number, names in enumerate(layers) for name in names}
        for name, targets in graph().items():
            own = ".".join(name.split(".")[:2])
            if not name.startswith(f"{package}.") or own == name == package:
                continue
            assert own in layer, f"{name}: its package {own} is not in LAYERS"
            for target in targets:
                other = ".".join(target.split(".")[:2])
                if other != own and other in layer and layer[other] >= layer[own]:
                    upward.append(f"{name} imports {target}")
    assert upward == []


def test_no_import_cycle() -> None:
    """Modules that import nothing but removed ones are removed, again and again; what remains imports in a circle."""
    left = dict(graph())
    while free := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in free}
    assert left == {}


def test_no_private_name_is_imported_from_another_module() -> None:
    found = [
        f"{dotted(path)}: {node.module}.{alias.name}"
        for path in files(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert found == []


def test_a_folder_has_at_most_16_children() -> None:
    counts = {}
    for folder in {path.parent for path in files(*PACKAGES)}:
        parts = [path for path in folder.iterdir() if path.suffix == ".py" and path.name != "__init__.py"]
        parts += [path for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))]
        counts[dotted(folder)] = len(parts)
    assert {name: count for name, count in counts.items() if count > 16} == {}


def test_every_text_is_plain_english() -> None:
    quaint = re.compile(rf"(?<![a-z])({'|'.join(QUAINT)})(?![a-z])", re.IGNORECASE)
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    kinds = (".py", ".md", ".yaml", ".yml", ".j2", ".css", ".js", ".toml", ".cff", "Makefile", "run", "-up", "-down")
    names = [name for name in listing.stdout.split() if name.endswith(kinds) and (ROOT / name).is_file()]
    found = [
        f"{name}:{number}: {match[0]!r} in {line.strip()[:80]}"
        for name in names
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        for match in [quaint.search(line.replace("(Ours)", ""))]  # the label of the paper's own rows
        if match
    ]
    assert len(names) > 200
    assert found == []


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in files(*PACKAGES, "tests"):
        lines = len(path.read_text().splitlines())
        long += [f"{path}: {lines} lines"] if lines > 400 else []
    for path in files(*PACKAGES):
        for node in ast.walk(tree(path)):
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
        assert len(lines) <= 60 and lines[0].startswith("# "), path
