"""The wheel: complete, and working in an environment that has neither the clone nor its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, TINY

PACKAGES = ("jigclu", "jigclu_cli", "orchestrate", "reports", "detection")
DATA = (".yaml", ".j2", ".css", ".mplstyle")


def tracked_files() -> list[str]:
    """Paths that git tracks, below the clone."""
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\0").split("\0")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files: a build folder in the clone may hold modules that no longer exist."""
    copy, target = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(target),
    ]
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and this interpreter's site-packages after it, without their .pth files.

    So the dependencies need no download, and an editable install of the clone is not visible.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def run(installed: Path, cwd: Path, *words: str) -> str:
    """Output of a Python command in the environment; it must succeed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JIGCLU_", "MLFLOW_", "PYTHON"))}
    command = [str(installed / "bin" / "python"), *words]
    values = kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=values, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_every_data_file_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {name for name in tracked_files() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    expected = {name for name in expected if name.endswith((*DATA, ".py", "py.typed"))}
    expected |= {name for name in tracked_files() if name.startswith("experiments/") and name.endswith(".yaml")}
    assert {f"{package}/py.typed" for package in PACKAGES} | {"reports/page/register.yaml"} <= expected
    assert sorted(expected - names) == []
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {*PACKAGES, "experiments"}
    assert not [name for name in names if name.startswith("reports/results")]


def test_an_installed_copy_imports_its_own_modules_and_has_the_command(installed: Path, tmp_path: Path) -> None:
    code = f"import {', '.join(PACKAGES)}; print({', '.join(f'{package}.__file__' for package in PACKAGES)})"
    paths = run(installed, tmp_path, "-c", code).split()
    assert len(paths) == len(PACKAGES) and all(path.startswith(str(installed)) for path in paths)
    code = "from importlib.metadata import entry_points; print(entry_points(group='console_scripts', name='jigclu'))"
    assert "jigclu_cli.__main__:main" in run(installed, tmp_path, "-c", code)
    assert run(installed, tmp_path, "-m", "jigclu_cli", "--version").startswith("jigclu-suite ")


def test_an_installed_copy_plans_and_reports(installed: Path, tmp_path: Path) -> None:
    plan = run(
        installed, tmp_path, "-m", "jigclu_cli", "run", "table8", "--scale", "smoke", "--cluster", "local", "--dry-run"
    )
    assert "7 jobs, 0 done" in plan
    (tmp_path / "runs").mkdir()
    assert "No runs yet" in run(installed, tmp_path, "-m", "jigclu_cli", "report")
    assert (tmp_path / "reports" / "out" / "index.html").is_file()


def test_an_installed_copy_runs_a_job_from_its_frozen_tree_and_claims_no_commit(
    installed: Path, tmp_path: Path
) -> None:
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ("run", "table8", "--scale", "smoke", "--cluster", "local", "--cells", "m=2", *settings)
    run(installed, tmp_path, "-m", "jigclu_cli", *words)
    (folder,) = (tmp_path / "runs" / "pretrain").glob("*/")
    assert json.loads((folder / "job.json").read_text())["commit"] == ""
    assert (folder / "source" / "experiments" / "table8.yaml").is_file()
    run(installed, tmp_path, "-m", "jigclu_cli", "export", folder.name[:6], "encoder.pt")
    assert (tmp_path / "encoder.pt").read_bytes() == (folder / "encoder.pt").read_bytes()
