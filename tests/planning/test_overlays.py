"""Experiment files and overlays: a mistake in one is one line that names the file and the valid choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from jigclu.config import ConfigError
from orchestrate.planning import experiments, overlays


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("scales", "on: {cifar10: {linear: {image_size: 32}}}", ["unknown key True", "for_data"]),
        ("scales", "pretrian: {epochs: 3}", ["unknown key pretrian", "did you mean pretrain?"]),
        ("scales", "for_data: {cifar: {linear: {lr: 1}}}", ["unknown key for_data.cifar;", "cifar10"]),
        ("scales", "methods: {moco_v2: {pretrain: {epochs: 1}}}", ["unknown key methods.moco_v2", "moco"]),
        ("protocols", "methods: {jigclu: {pretrian: {}}}", ["unknown key methods.jigclu.pretrian"]),
    ],
)
def test_an_overlay_with_an_unknown_key_is_refused(
    kind: str, text: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "odd.yaml").write_text(text)
    monkeypatch.setattr(overlays, "ROOT", tmp_path)
    with pytest.raises(ConfigError) as error:
        overlays.overlay(kind, "odd")
    assert str(error.value).startswith("odd.yaml: ") and all(word in str(error.value) for word in expected), error.value


HEAD = "title: t\nsource: s\ntopic: p\nunit: u\nrecipe: {pretrain: {}}\n"
COLUMN = "columns: [{column: a, report: pretrain.loss}]\n"
ADDED = COLUMN + "rows: [{row: r, printed: [1]}]\nreferences: [{row: q, "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (COLUMN + "rows: [{row: r, printed: [1, 2]}]", ["prints 2 values for 1 columns"]),
        (
            COLUMN + "rows: [{row: r, printed: 3.0}]",
            ["rows 1: printed: a list is expected, one value for each column (got 3.0)"],
        ),
        (COLUMN + "rows: [1]", ["rows: a list of mappings is expected (got [1])"]),
        ("columns: [{colum: a}]\nrows: [{row: r, printed: [1]}]", ["columns 1: column is missing"]),
        (
            COLUMN + "rows: [{row: r, printed: [1], set: {pretrian.epochs: 3}}]",
            ["sets 'pretrian.epochs'", "did you mean pretrain?"],
        ),
        (
            COLUMN + "rows: [{row: r, printed: [1], protocols: {oficial: {}}}]",
            ["unknown protocol 'oficial'", "did you mean official?"],
        ),
        (COLUMN + "rows: [{row: r}]", ["no printed value"]),
        (COLUMN + "rows: [{row: r, printed: [1], cited: x, not_applicable: y}]", ["exactly one of"]),
        (
            COLUMN + "rows: [{row: r, printed: [1]}]\nclaims: [{text: t, source: s, best: [r a, r b]}]",
            ["'r b'", "did you mean r a?"],
        ),
        (COLUMN + "rows: [{row: r, printed: [1]}]\nclaims: [{text: t, source: s}]", ["exactly one of order, best"]),
        (COLUMN + "rows: [{row: r, printed: [1], not_at: [smoke]}]", ["'r a' has not_at: only a reference"]),
        (ADDED + "not_at: [smok]}]", ["unknown scale 'smok'", "did you mean smoke?"]),
        (ADDED + "not_at: [smoke]}]\nclaims: [{text: t, source: s, best: [r a, q a]}]", ["'q a' has not_at"]),
    ],
)
def test_a_mistake_in_an_experiment_file_is_one_line(
    text: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, names in {"protocols": ("official", "paper"), "scales": ("smoke",)}.items():
        (tmp_path / kind).mkdir()
        for name in names:
            (tmp_path / kind / f"{name}.yaml").write_text("")
    (tmp_path / "table1.yaml").write_text(HEAD + text)
    monkeypatch.setattr(overlays, "ROOT", tmp_path)
    with pytest.raises(ConfigError) as error:
        experiments.load_all()
    assert str(error.value).startswith("table1.yaml: ") and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in expected), error.value
