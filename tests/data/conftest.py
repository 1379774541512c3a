"""Fixtures of the data tests: a cache of their own, and a small data set to pack."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.packs import COUNTS, folders, register


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JIGCLU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with an `imagenette` of a few images of many shapes, some larger and some smaller than the canvas."""
    register(monkeypatch, COUNTS)
    return folders(tmp_path / "root", COUNTS)
