"""Architecture rules, checked by reading every source file and by importing for real."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment

PACKAGES = ("jigclu", "jigclu_cli", "orchestrate", "reports", "detection", "benchmarks")
FORBIDDEN = {
    "jigclu": {"orchestrate", "reports", "detection", "benchmarks", "mlflow", "submitit", "detectron2"},
    "jigclu_cli": {"torch", "torchvision", "mlflow", "submitit", "detection", "benchmarks", "detectron2"},
    "orchestrate": {"torch", "torchvision", "reports", "detection", "benchmarks", "detectron2"},
    "reports": {"torch", "torchvision", "submitit", "detection", "benchmarks", "detectron2"},
    "detection": {"orchestrate", "reports", "benchmarks", "mlflow", "submitit"},
}
PLANNING = ("torch", "torchvision", "mlflow", "submitit", "pandas", "matplotlib")
# Each package's modules and sub-packages, bottom to top: one may import those of its own line and of the lines above it.
LAYERS = {
    "jigclu": (
        "files counter_rng config",
        "job_folder patches resample montage network losses",
        "augment",
        "data",
        "training",
        "evaluation figures",
        "methods",
        "stages",
    ),
    "orchestrate": (
        "console planning submitit_bridge",
        "jobs clusters",
        "cost mirror",
        "worker preflight",
        "slurm local",
        "cli",
        "run __main__",
    ),
    "reports": (
        "records frames",
        "formatting",
        "verdicts",
        "tables export assemble publish",
        "figures",
        "table_files page",
        "build",
        "__main__",
    ),
}
CHILDREN = 16
# An invented English, or words with a plain one in their place. Identifiers count: `_` ends a word.
BANNED = (
    "told", "ours", "lies", "judged", "mended", "hears", "nought", "gone on from", "goes on", "go on", "hangs on",
    "by themselves", "thrice", "whoever", "of before", "today's", "hereafter",
)  # fmt: skip
_PHRASES = "|".join(BANNED).replace(" ", r"[\s_#]+")  # a phrase may continue on the next line, or in an identifier
BANNED_WORD = re.compile(rf"(?<![a-z])(?:{_PHRASES})(?![a-z])", re.IGNORECASE)
SCANNED = (".py", ".md", ".yaml", ".yml", ".j2", ".css", ".js", ".toml", "Makefile")
NOT_SCANNED = ("tests/system/test_design.py",)  # it lists the words


@functools.cache
def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules(package: str) -> list[str]:
    """Its modules' dotted names, without those that run when imported (__main__)."""
    return [module_name(path) for path in files(package) if path.stem != "__main__"]


@functools.cache
def everything() -> dict[str, Path]:
    """Every module of the suite by its dotted name."""
    return {module_name(path): path for package in PACKAGES for path in files(package)}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything that the file imports, also inside functions; `from a import b` gives a.b."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """(module of the suite, line): of `from a import b` the module a.b if there is one, else a."""
    for name, line in imported(path):
        for module in (name, name.rpartition(".")[0]):
            if module in everything():
                yield module, line
                break


def packages_imported(path: Path) -> Iterator[tuple[str, int]]:
    yield from ((name.split(".")[0], line) for name, line in imported(path))


def loaded_by(code: str, suspects: tuple[str, ...]) -> list[str]:
    """Those of the suspects that a fresh interpreter has imported after it ran the code."""
    code = f"{code}\nimport sys; print(*sorted(set({suspects!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(ROOT / "runs"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_a_forbidden_one(package: str) -> None:
    found = [(str(path), line, name) for path in files(package) for name, line in packages_imported(path)]
    assert [use for use in found if use[2] in FORBIDDEN[package]] == []


def test_only_the_shared_parser_of_the_command_is_imported_elsewhere() -> None:
    others = [path for package in PACKAGES if package != "jigclu_cli" for path in files(package)]
    found = {name for path in others for name, _ in imported_modules(path) if name.split(".")[0] == "jigclu_cli"}
    assert found == {"jigclu_cli.arguments"}


@pytest.mark.parametrize("package", LAYERS)
def test_no_module_imports_a_higher_layer(package: str) -> None:
    layers = {name: index for index, line in enumerate(LAYERS[package]) for name in line.split()}
    wrong = []
    for path in files(package):
        parts = module_name(path).split(".")
        if len(parts) == 1:
            continue
        assert parts[1] in layers, f"{path}: name {parts[1]} in LAYERS"
        for name, line in imported_modules(path):
            target = name.split(".")
            if target[0] == package and len(target) > 1 and layers[target[1]] > layers[parts[1]]:
                wrong.append(f"{path}:{line} imports {name}")
    assert wrong == []


def test_no_import_cycle() -> None:
    """Imports inside functions count: they hide a cycle, they do not remove it."""
    graph = {name: {found for found, _ in imported_modules(path)} - {name} for name, path in everything().items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_private_name_is_imported_from_another_module() -> None:
    private = re.compile(r"\._(?!_)")
    found = [
        f"{path}:{line} {name}"
        for path in everything().values()
        for name, line in imported(path)
        if name.split(".")[0] in PACKAGES and private.search(name)
    ]
    assert found == []


def test_a_folder_has_few_modules() -> None:
    crowded = {}
    for folder in sorted({path.parent for path in everything().values()}):
        packages = [path for path in folder.iterdir() if path.is_dir() and (path / "__init__.py").exists()]
        count = len([*packages, *folder.glob("*.py")]) - (folder / "__init__.py").exists()
        if count > CHILDREN:
            crowded[str(folder)] = count
    assert crowded == {}


def test_no_file_uses_a_banned_word() -> None:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split("\0") if name.endswith(SCANNED) and name not in NOT_SCANNED]
    assert len(names) > 150
    found = []
    for path in (ROOT / name for name in names if (ROOT / name).is_file()):
        text = path.read_text()
        for match in BANNED_WORD.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {' '.join(match[0].split())}")
    assert found == [], f"{len(found)} banned words"


def test_the_scan_for_banned_words_finds_them_in_identifiers_and_across_lines() -> None:
    text = "def told_lines(): MINE_OURS; goes\n    on; untold hours belies go_on"
    assert [match[0] for match in BANNED_WORD.finditer(text)] == ["told", "OURS", "goes\n    on", "go_on"]


def test_the_scan_reads_every_package() -> None:
    """The other tests would pass on an empty list."""
    expected = {
        "jigclu": {"torch", "jigclu"},
        "orchestrate": {"mlflow", "submitit", "jigclu"},
        "reports": {"pandas", "orchestrate"},
    }
    for package, names in expected.items():
        assert names <= {name for path in files(package) for name, _ in packages_imported(path)}
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
    for path in everything().values():
        lines = len(path.read_text().splitlines())
        long += [f"{path}: {lines} lines"] if lines >= 400 else []
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path}:{node.lineno} {node.name}: {lines} lines"] if lines >= 70 else []
    assert long == []


def test_every_module_says_what_it_is_for() -> None:
    assert [str(path) for path in everything().values() if tree(path).body and not ast.get_docstring(tree(path))] == []


def test_an_experiment_file_is_short_and_begins_with_its_claim() -> None:
    paths = sorted((ROOT / "experiments").glob("*.yaml"))
    assert paths
    for path in paths:
        lines = path.read_text().splitlines()
        assert len(lines) <= 40 and lines[0].startswith("# "), path
