"""Hand-written experiment files, scales, protocols and methods: a mistake is one line that names the file and the key."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jigclu.config import ConfigError, LinearConfig
from orchestrate.planning import overlays
from orchestrate.planning.experiments import find, load_all, topics
from orchestrate.planning.plan import make_plan
from orchestrate.planning.resolve import parse_sets

MINE = """
title: t
source: s
topic: mine
unit: "%"
recipe: {pretrain: {data: {name: imagenet100}}, linear: {}}
columns: [{column: a, report: linear.top1}]
references: [{row: "", set: {}}]
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the experiment files, with an experiment of the user's own."""
    root = tmp_path / "experiments"
    shutil.copytree(overlays.ROOT, root)
    (root / "mine.yaml").write_text(MINE)
    monkeypatch.setattr(overlays, "ROOT", root)
    overlays.overlay.cache_clear()
    yield root
    overlays.overlay.cache_clear()


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refusal(protocol: str = "official") -> str:
    with pytest.raises(ConfigError) as error:
        make_plan(find(["mine"]), "smoke", protocol, 1, {})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_copy_is_planned_as_it_is(tree: Path) -> None:
    assert len(make_plan(find(["mine"]), "smoke", "official", 1, {}).jobs) == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{name: imagenet100}", "imagenet100", "recipe: pretrain.data: a mapping (lines of `key: value`) is expected"),
        ("{name: imagenet100}", "null", "recipe: pretrain.data: a mapping"),
        ("name: imagenet100", "name: [imagenet100]", "recipe: pretrain.data.name: a text is expected"),
        ("name: imagenet100", "name: 7", "recipe: pretrain.data.name: a text is expected (got 7)"),
        ("linear: {}", "linear: {}, linar: {}", "unknown stage 'linar'; valid: dense, detect"),
        ("linear: {}", "linear: {backbone: {a: 1}}", "recipe: linear.backbone: a text is expected"),
        ("linear: {}", "linear: {epochs: {a: 1}}", "recipe: linear.epochs: a single value or a list is expected"),
        ("set: {}", "set: {pretrain.data: x}", "cell 'a': pretrain.data: a mapping"),
        ("set: {}", "set: {pretrain.data.name.x: 1}", "cell 'a': pretrain.data.name: a text is expected"),
        (
            "set: {}",
            "set: {linear.data: {name: x}, linear.data.name: x}",
            "cell 'a' sets linear.data and linear.data.name",
        ),
        (
            "set: {}",
            "set: {pretrain.batchsize: 40%}",
            "unknown key pretrain.batchsize; ",
        ),
        ("set: {}", "set: {pretrain.epochs: " + "4" * 5000 + "%}", "pretrain.epochs: a whole number is expected"),
        ("set: {}", "set: 3", "references 1: set: a mapping"),
        ("set: {}", "set: &a {pretrain.x: *a}", "a value contains itself, by an anchor"),
        (
            "linear.top1",
            "linear.accuracy",
            "cell 'a' reports 'linear.accuracy'; valid: alignment, best_top1, knn_top1, last_top1, rank",
        ),
        ("columns: [{column: a,", "columns: [{", "columns 1: column is missing"),
        ('references: [{row: "", set: {}}]', "references: text", "references: a list of mappings is expected"),
        ("title: t", "name: other\ntitle: t", "unknown key name: an experiment is named after its file"),
        ("a,", "a, key: b, report: linear.top1}, {column: a,", "two cells have the row '' and the column 'a'"),
        ("title: t", "title: t\nlayout: {plot: lines}", "column 'a' is no number, as layout.plot: lines needs"),
        (
            "title: t",
            "title: t\nclaims: [{text: x, source: y, reaches: {target: a, series: [a], at: b}}]",
            "at: 'b' is not in",
        ),
        ("{name: imagenet100}", "{name: imagenet100}, method: {name: moco}", "the method belongs to the cell"),
        (
            "columns:",
            "rows: [{row: r, printed: [1], cited: x, report: linear.top1}]\ncolumns:",
            "exactly one of report, cited",
        ),
        ("title: t", "title: t\nclaims: [{text: x, source: y}]", "claim 'x' needs exactly one of order, best"),
        ("title: t", "title: t\nclaims: [{text: x, source: y, best: [a, c], order: [a, c]}]", "it has order, best"),
        ("title: t", "title: t\nclaims: [{text: x, source: y, best: [a, c]}]", "claim 'x' names the cell 'c'"),
        ("topic: mine", 'topic: " "', "mine.yaml: topic is empty"),
        ("title: t", "title: t\nclaims: [{text: x, source: y, best: [a, a]}]", "claim 'x' names the cell 'a' twice"),
        ("title: t", "title: t\nclaims: [{text: x, source: y, order: []}]", "claim 'x' compares fewer than two cells"),
        ('{row: "", set: {}}', '{row: "", printed: 3.0}', "references 1: printed: a list is expected"),
        ('{row: "", set: {}}', '{row: "", printed: }', "references 1: printed: a list is expected"),
        ('{row: "", set: {}}', "{printed: [1, 2]}", "row '' prints 2 values for 1 columns"),
        (
            "set: {}",
            "set: {pretrain.method.name: moco}",
            "cell 'a' sets pretrain.method.name; write method: beside set",
        ),
        ("set: {}", "set: {pretrain.method: {name: moco}}", "cell 'a' sets pretrain.method.name"),
        ("topic: mine", "topic: table8", "topic 'table8' already means table8"),
        ("topic: mine", "topic: all", "topic 'all' already means all experiments"),
    ],
)
def test_a_mistake_in_an_own_experiment_is_one_line(old: str, new: str, expected: str, tree: Path) -> None:
    replaced(tree / "mine.yaml", old, new)
    message = refusal()
    assert expected in message and "mine" in message


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (
            "scales/smoke",
            "pretrain: [1]",
            "smoke.yaml: pretrain: a mapping (lines of `key: value`) is expected (got [1])",
        ),
        ("scales/smoke", "methods: [jigclu]", "smoke.yaml: methods: a mapping"),
        ("scales/smoke", "methods: {jigclu: text}", "smoke.yaml: methods.jigclu: a mapping"),
        ("scales/smoke", "methods: {jigclu: {pretrain: text}}", "smoke.yaml: methods.jigclu.pretrain: a mapping"),
        ("scales/smoke", "backbones: {resnet50: [resnet18]}", "smoke.yaml: backbones.resnet50: unknown backbone"),
        ("scales/smoke", "backbones: text", "smoke.yaml: backbones: a mapping"),
        ("scales/smoke", "datasets: {imagenet100: scenes}", "smoke.yaml: datasets.imagenet100: a mapping"),
        (
            "scales/smoke",
            "datasets: {imagenet1k/10percent: {name: scenes}}",
            "unknown key datasets.imagenet1k/10percent",
        ),
        ("scales/smoke", "gpus: 4", "smoke.yaml: gpus: a mapping"),
        ("scales/smoke", "detection: {datasets: text}", "smoke.yaml: detection.datasets: a mapping"),
        (
            "scales/smoke",
            "detection: {backbones: {resnet50: vgg}}",
            "detection.backbones.resnet50: unknown backbone 'vgg'",
        ),
        (
            "scales/smoke",
            "gpus: {pretrain: four}",
            "gpus.pretrain: a whole number from 1 to 4096 is expected (got 'four')",
        ),
        ("scales/smoke", "gpus: {pretrain: 0}", "gpus.pretrain: a whole number from 1 to 4096 is expected (got 0)"),
        ("scales/smoke", "gpus: {pretrian: 4}", "smoke.yaml: unknown key gpus.pretrian; valid: dense, detect"),
        ("methods/jigclu", "", "jigclu.yaml: pretrain.method.name is missing; valid: jigclu"),
        ("methods/jigclu", "pretrain:", "jigclu.yaml: pretrain.method.name is missing"),
        ("methods/jigclu", "pretrain: {method: jigclu}", "jigclu.yaml: pretrain.method: a mapping"),
        ("methods/jigclu", "pretrain: {method: {name: [jigclu]}}", "jigclu.yaml: pretrain.method.name: a text"),
        ("methods/jigclu", "gpus: {pretrain: 4}", "jigclu.yaml: unknown key gpus; valid: dense, detect"),
        ("protocols/official", "datasets: {}", "official.yaml: unknown key datasets"),
        (
            "protocols/official",
            "for_data: {imagenet100: {linear: text}}",
            "official.yaml: for_data.imagenet100.linear: a map",
        ),
    ],
)
def test_a_mistake_in_an_overlay_is_one_line(file: str, text: str, expected: str, tree: Path) -> None:
    (tree / f"{file}.yaml").write_text(text)
    assert expected in refusal()


@pytest.mark.parametrize("text", ["for_data:", "methods:", "datasets:", "gpus:", "methods: {moco: }", "pretrain:"])
def test_an_empty_section_is_an_absent_one(text: str, tree: Path) -> None:
    path = (
        tree / "protocols" / "official.yaml"
        if text.startswith(("for", "met", "pre"))
        else tree / "scales" / "paper.yaml"
    )
    path.write_text(text)
    find(["mine"])
    overlays.overlay(path.parent.name, path.stem)


def test_two_experiments_of_one_topic_are_refused(tree: Path) -> None:
    shutil.copy(tree / "mine.yaml", tree / "more.yaml")
    with pytest.raises(ConfigError, match=r"more\.yaml: topic 'mine' already means mine"):
        load_all()


def test_cells_that_an_own_protocol_does_not_tell_apart_are_refused(tree: Path) -> None:
    (tree / "protocols" / "own.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"figure7: cells .* are the same under protocol own; give them values under"):
        make_plan(find(["figure7"]), "smoke", "own", 1, {})
    make_plan(find(["table8"]), "smoke", "own", 1, {})


def test_a_row_may_add_to_a_columns_mapping(tree: Path) -> None:
    replaced(tree / "mine.yaml", "report: linear.top1}", "report: linear.top1, set: {linear.data: {name: scenes}}}")
    replaced(tree / "mine.yaml", "set: {}", "set: {linear.data.val_images: 20}")
    (job,) = (
        job for job in make_plan(find(["mine"]), "smoke", "official", 1, {}).jobs.values() if job.stage == "linear"
    )
    assert isinstance(job.config, LinearConfig) and (job.config.data.name, job.config.data.val_images) == ("scenes", 20)


def test_jobs_can_be_named_although_a_file_is_half_edited(tree: Path) -> None:
    (tree / "mine.yaml").write_text("title: [")
    found = topics()
    assert found["mine"] == "mine" and found["table8"] == "m"
    with pytest.raises(ConfigError):
        load_all()


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain.data=x", "pretrain.data.name=y"],
        ["linear.lr=1", "linear.lr.x=2"],
        ["linear.data={name: a}", "linear.data.name=b"],
    ],
)
def test_a_setting_inside_another_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--set sets .* write one of them"):
        parse_sets(words)


@pytest.mark.parametrize("protocol", overlays.overlays("protocols"))
def test_the_files_of_the_suite_pass(protocol: str) -> None:
    assert make_plan(find(["all"]), "paper", protocol, 1, {}).jobs


def test_files_that_editors_and_systems_hide_are_no_experiments(tree: Path) -> None:
    for name in (".#table8.yaml", "._table8.yaml", "scales/._smoke.yaml"):
        (tree / name).write_text("\0")
    assert "._table8" not in load_all() and "._smoke" not in overlays.overlays("scales")


def test_no_experiment_is_called_all(tree: Path) -> None:
    (tree / "mine.yaml").rename(tree / "all.yaml")
    with pytest.raises(ConfigError, match=r"all\.yaml: an experiment cannot be called all"):
        load_all()
