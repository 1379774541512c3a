"""The code that jobs run: frozen beside them, and digested by what a stage really imports. No torch, nothing imported."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from jigclu.files import read_json, write_json

PROJECT = Path(__file__).resolve().parents[2]
COMMIT = "COMMIT.json"  # in a frozen tree: the commit that its bytes are
PACKAGES = ("jigclu", "orchestrate", "detection", "experiments")  # what a job may need of the project
STAGE_MODULES = {name: f"jigclu.stages.{name}" for name in ("pretrain", "linear", "finetune", "knn")}
STAGE_MODULES["detect"] = "detection.stage"


def _module_file(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.exists():
            return candidate
    return None


def _imports(file: Path) -> set[str]:
    """Absolute dotted names that a file imports; `from a import b` gives a and a.b, whichever of them is a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] in ("jigclu", "detection")}


def closure(module: str, root: Path = PROJECT) -> list[Path]:
    """The project's files that importing `module` reads, sorted, packages' __init__ included."""
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
            waiting.extend(_imports(file))
    return sorted({file for file in seen.values() if file})


def stage_digest(stage: str, root: Path = PROJECT) -> str:
    """12 hex over the names and bytes of the files that the stage imports."""
    return _digest(closure(STAGE_MODULES[stage], root), root)


def differing(stage: str, other: Path) -> list[str]:
    """The stage's files (of either tree) that are not the same in the tree at `other`, as paths below the tree."""
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
    """(git commit, whether the tree differs from it); ("", True) where there is no git to ask."""
    try:  # an installed copy may lie below somebody's repository, which does not track it
        tracked = ["git", "-C", str(PROJECT), "ls-files", "--error-unmatch", "orchestrate/__init__.py"]
        subprocess.run(tracked, capture_output=True, check=True)
        head = subprocess.run(
            ["git", "-C", PROJECT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", PROJECT, "status", "--porcelain", "--", *PACKAGES], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "", True
    return head, bool(changed.strip())


def freeze(store: Path) -> Path:
    """Copy the packages to <store>/source/<digest>/ once; jobs run from there, so editing the tree changes no running job."""
    files = sorted(
        path for package in PACKAGES for path in (PROJECT / package).rglob("*") if path.suffix in (".py", ".yaml")
    )
    tree = store / "source" / _digest(files, PROJECT)
    if not tree.exists():
        aside = tree.with_name(f".{tree.name}.{os.getpid()}.tmp")
        for file in files:
            target = aside / file.relative_to(PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        try:
            os.replace(aside, tree)
        except OSError:  # another orchestrator was quicker with the same bytes
            shutil.rmtree(aside)
    os.utime(tree)  # `clean` leaves young trees alone
    sha, dirty = commit()
    known = read_json(tree / COMMIT)
    if not known or (known["dirty"] and not dirty):  # the same bytes, committed since
        write_json(tree / COMMIT, {"commit": sha, "dirty": dirty})
    return tree


def provenance(stage: str, root: Path) -> dict[str, Any]:
    """What a job run from `root` is made by: commit, dirty (the tree differed from it) and source_digest."""
    made_by = read_json(root / COMMIT) or dict(zip(("commit", "dirty"), commit(), strict=True))
    return {**made_by, "source_digest": stage_digest(stage, root)}


def job_environment(tree: Path) -> dict[str, str]:
    """What makes a job import the frozen tree and nothing of the folder that it was started in."""
    return {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
