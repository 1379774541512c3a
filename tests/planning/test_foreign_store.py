"""A folder is taken for a store even if the first run was killed early, and never if it holds somebody's files."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from jigclu.config import STAGES, StageName
from orchestrate.preflight import foreign_file


@pytest.mark.parametrize(
    ("names", "foreign"),
    [
        ((), ""),
        ((".submit.lock",), ""),
        (("mlflow.db.lock",), ""),  # a first run that was killed while MLflow made its database
        (("mlflow.db.lock", "notes.txt"), ""),
        ((".store.json", "notes.txt"), ""),
        (("pretrain", "notes.txt"), ""),
        (("notes.txt", "a.txt", ".hidden"), "a.txt"),
    ],
)
def test_a_folder_with_other_files_only_is_no_store(names: tuple[str, ...], foreign: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert foreign_file(tmp_path) == foreign


def test_the_stages_have_one_list_of_names() -> None:
    assert tuple(STAGES) == get_args(StageName)
