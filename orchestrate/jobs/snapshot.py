"""The code that jobs run: a frozen copy in the store, and a digest per stage over the files that it imports.

Imports are found by parsing the files, so that no stage (and no torch) is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from jigclu.config import STAGES
from jigclu.files import read_cache, write_json

PROJECT = Path(__file__).resolve().parents[2]
COMMIT = "COMMIT.json"  # in a frozen tree: the commit that it was copied from
PACKAGES = ("jigclu", "orchestrate", "detection", "experiments")  # the part of the project that a job may need
STAGE_MODULES = {name: "detection.stage" if name == "detect" else f"jigclu.stages.{name}" for name in STAGES}
LAZY_IMPORT = re.compile(r"(jigclu|detection)(\.\w+)+:\w+")


def _module_file(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.exists():
            return candidate
    return None


@cache
def _imports(source: bytes) -> set[str]:
    """Absolute dotted names that a file imports; `from a import b` gives a and a.b, since either may be a module.

    A text such as "jigclu.methods.moco:MoCo" is an import when it is needed.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and LAZY_IMPORT.fullmatch(node.value):
            names.add(node.value.partition(":")[0])
    return {name for name in names if name.split(".")[0] in ("jigclu", "detection")}


def closure(module: str, root: Path = PROJECT) -> list[Path]:
    """The project's files that are read if `module` is imported, sorted, packages' __init__ included."""
    seen: dict[str, Path | None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        file = seen[name] = _module_file(name, root)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        if file:
            waiting.extend(_imports(file.read_bytes()))
    return sorted({file for file in seen.values() if file})


def stage_digest(stage: str, root: Path = PROJECT) -> str:
    """12 hex over the names and bytes of the files that the stage imports."""
    return _digest(closure(STAGE_MODULES[stage], root), root)


def differing(stage: str, other: Path) -> list[str]:
    """The stage's files that differ between this tree and the one at `other`, as paths relative to the tree."""
    if not other.is_dir():
        return []
    names = {str(file.relative_to(root)) for root in (PROJECT, other) for file in closure(STAGE_MODULES[stage], root)}

    def content(root: Path, name: str) -> bytes | None:
        return (root / name).read_bytes() if (root / name).exists() else None

    return sorted(name for name in names if content(PROJECT, name) != content(other, name))


def _digest(files: list[Path], root: Path) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(root)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:12]


@cache
def commit() -> tuple[str, bool]:
    """(git commit, whether the tree differs from it); ("", True) unless git tracks these very files."""
    try:  # an installed or unpacked copy may lie below somebody's repository, which does not track it
        _git("ls-files", "--error-unmatch", "orchestrate/__init__.py", "jigclu/__init__.py")
        return _git("rev-parse", "HEAD").strip(), bool(_git("status", "--porcelain", "--", *PACKAGES).strip())
    except (OSError, subprocess.CalledProcessError):
        return "", True


def _git(*words: str) -> str:
    """stdout of git in the project's folder. GIT_DIR, GIT_WORK_TREE and the like would name another repository."""
    env = {
        key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key.startswith("GIT_CONFIG")
    }
    command = ["git", "-C", str(PROJECT), *words]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, env=env).stdout


def freeze(store: Path) -> Path:
    """Copy the packages to <store>/source/<digest>/ once. Jobs run from there, so edits change no running job."""
    files = sorted(
        path for package in PACKAGES for path in (PROJECT / package).rglob("*") if path.suffix in (".py", ".yaml")
    )
    tree = store / "source" / _digest(files, PROJECT)
    if not tree.exists():
        temporary = tree.with_name(f".{tree.name}.{os.getpid()}.tmp")
        for file in files:
            target = temporary / file.relative_to(PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        try:
            os.replace(temporary, tree)
        except OSError:  # another orchestrator froze the same files first
            shutil.rmtree(temporary)
    os.utime(tree)  # `clean` leaves young trees alone
    sha, dirty = commit()
    recorded = read_cache(tree / COMMIT)
    if not recorded or (recorded["dirty"] and not dirty):  # the same files have been committed since
        write_json(tree / COMMIT, {"commit": sha, "dirty": dirty})
    return tree


def provenance(stage: str, root: Path) -> dict[str, Any]:
    """The code version of a job that runs from `root`: commit, dirty (the tree differed from it) and source_digest."""
    version = read_cache(root / COMMIT) or dict(zip(("commit", "dirty"), commit(), strict=True))
    return {**version, "source_digest": stage_digest(stage, root)}


def job_environment(tree: Path) -> dict[str, str]:
    """Variables that make a job import the frozen tree, and nothing from the folder in which it is started."""
    return {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
