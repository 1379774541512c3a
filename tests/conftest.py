"""Where tests find real data and golden numbers, and stores of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.stop import stop_at  # noqa: F401  a fixture

from jigclu.training import interrupt
from orchestrate import mirror


def _folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        pytest.skip(f"no {what} at {path}: set JIGCLU_DATA to a data root that has it")
    return path.resolve()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The data root with real images."""
    return (
        _folder(Path(os.environ.get("JIGCLU_DATA", "data")), "real data")
        if "JIGCLU_DATA" in os.environ
        else pytest.skip("JIGCLU_DATA is not set: no real data")
    )


@pytest.fixture(scope="session")
def imagenette(data_root: Path) -> Path:
    _folder(data_root / "imagenette", "Imagenette")
    return data_root


@pytest.fixture(scope="session")
def golden(data_root: Path) -> Path:
    """Numbers made with the released code, beside the data root."""
    return _folder(data_root.parent / "golden", "golden numbers")


@pytest.fixture(autouse=True)
def _calm() -> None:
    """One thread, so that timing noise of small products goes; no stop request left over from another test."""
    torch.set_num_threads(1)
    interrupt.clear()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty migrated database: making one takes seconds, copying it none."""
    store = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        mirror.prepare(store)
    return store / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose database is there and known to be migrated."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "runs"
    store.mkdir()
    shutil.copy(template, store / "mlflow.db")
    made = next(template.parent.glob(".mirror/*/prepared"))
    marker = store / ".mirror" / mirror.cursor_folder(store).name / "prepared"
    marker.parent.mkdir(parents=True)
    shutil.copy(made, marker)
    return store
