"""The code that jobs run: found by a stage's imports, frozen beside the jobs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment

from orchestrate.jobs import snapshot
from orchestrate.jobs.snapshot import STAGE_MODULES, closure, freeze, stage_digest


def names(module: str, root: Path = ROOT) -> set[str]:
    return {str(path.relative_to(root)) for path in closure(module, root)}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that a test may edit."""
    tree = tmp_path / "project"
    for package in snapshot.PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(snapshot, "PROJECT", tree)
    return tree


def test_a_stages_files_are_exactly_what_it_imports() -> None:
    available = {name: module for name, module in STAGE_MODULES.items() if name != "detect" or find_spec("detectron2")}
    code = f"import importlib, json, pkgutil, sys; [importlib.import_module(name) for name in {list(available.values())}]; "
    code += "from jigclu import methods; [pkgutil.resolve_name(name) for name in methods.METHODS.values()]; "
    code += (
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ('jigclu', 'detection')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(ROOT), capture_output=True, text=True)
    imported = {str(Path(file).relative_to(ROOT)) for file in json.loads(done.stdout)}
    found = set.union(*map(names, available.values()))
    assert found == imported
    assert {"jigclu/augment.py", "jigclu/montage.py", "jigclu/config/stages.py", "jigclu/__init__.py"} <= found


def test_a_pretraining_depends_on_every_method_and_its_loss() -> None:
    methods = {f"jigclu/methods/{name}.py" for name in ("jigclu", "simclr", "moco", "supervised")}
    assert methods | {"jigclu/losses.py"} <= names(STAGE_MODULES["pretrain"])


def test_a_stages_digest_depends_only_on_its_own_files(tree: Path) -> None:
    before = {stage: stage_digest(stage, tree) for stage in STAGE_MODULES}
    assert before == {stage: stage_digest(stage) for stage in STAGE_MODULES}
    with open(tree / "orchestrate" / "planning" / "plan.py", "a") as file:
        file.write("# another comment\n")
    assert {stage: stage_digest(stage, tree) for stage in STAGE_MODULES} == before
    assert "jigclu/montage.py" not in names(STAGE_MODULES["linear"])
    with open(tree / "jigclu" / "montage.py", "a") as file:
        file.write("# another comment\n")
    after = {stage: stage_digest(stage, tree) for stage in STAGE_MODULES}
    assert {stage for stage in before if after[stage] != before[stage]} == {"pretrain"}


def test_frozen_code_stays_as_it_was(tree: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    frozen = freeze(store)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in frozen.rglob("*") if path.is_file()}
    assert {path.relative_to(frozen).parts[0] for path in before} >= {"jigclu", "orchestrate", "experiments"}
    assert freeze(store) == frozen
    (tree / "jigclu" / "losses.py").write_text("raise SystemExit('edited while a job runs')\n")
    newer = freeze(store)
    assert newer != frozen and (newer / "jigclu" / "losses.py").read_text().startswith("raise SystemExit")
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in frozen.rglob("*") if path.is_file()
    } == before
    assert sorted(path.name for path in (store / "source").iterdir()) == sorted([frozen.name, newer.name])
