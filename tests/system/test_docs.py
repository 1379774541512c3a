"""The documents: links lead somewhere, commands exist and take their arguments, the recipes work as written."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.orchestrator import ROOT, environment
from torchvision.models import resnet18

from jigclu_cli.__main__ import COMMANDS, HELP

GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
INDENTED = re.compile(r"(?:^    .*\n|^\n+(?=    ))+", re.MULTILINE)
PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(python3?|make|jigclu)(?= |$)")
DOORS = {"orchestrate/run.py": "orchestrate.run"}
PLACEHOLDERS = ("COMMAND", "VERB")


class Parsed(Exception):
    """The arguments were accepted; nothing was run."""


def blocks(path: Path) -> list[str]:
    """The indented blocks of a document."""
    return [textwrap.dedent(block).strip("\n") + "\n" for block in INDENTED.findall(path.read_text())]


def commands(path: Path) -> Iterator[str]:
    """Every command line in an indented block or in `code`, and after # in the first line of a file shown there."""
    inline = re.findall(r"(?<!`)`([^`\n]+)`", INDENTED.sub("", path.read_text()))
    lines = [line for block in blocks(path) for line in block.splitlines()]
    lines += [found[1] for line in lines if (found := re.match(r"# \S+\.yaml +(\S.*)", line))]
    yield from (text.strip() for text in (*lines, *inline) if PROGRAM.match(text.strip()))


def documented() -> list[tuple[str, str]]:
    return sorted({(path.name, line) for path in DOCUMENTS for line in commands(path)})


def accept(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the command's main with these words and stop when they are parsed; SystemExit if they are refused."""
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
        real(self, *arguments, **options)
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        importlib.import_module(module).main(words)


def check(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AssertionError or SystemExit unless the command line names what exists, with arguments that its parser takes."""
    words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=.*/?", word)]
    program, words = Path(words[0]).name, words[1:]
    if not words:
        return
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert [word for word in words if not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE)] == []
        variables = re.findall(r"\b([A-Z_]+)=", line)
        assert [name for name in variables if f"{name} ?=" not in makefile and f"$({name})" not in makefile] == []
    elif program == "jigclu":
        assert words[0] in (*COMMANDS, *PLACEHOLDERS, "--version", "--help"), line
        if len(words) > 1:
            module, is_verb = COMMANDS[words[0]]
            accept(module, words if is_verb else words[1:], monkeypatch)
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]), line
        if words[2:] and not set(words) & {*PLACEHOLDERS}:
            accept(f"{words[1]}.__main__", words[2:], monkeypatch)
    else:
        assert (ROOT / words[0]).is_file(), line
        if words[1:]:
            accept(DOORS[words[0]], words[1:], monkeypatch)


def anchors(path: Path) -> set[str]:
    """The #anchors that a Markdown page has, as GitHub derives them from its headings."""
    headings = re.findall(r"^#+ (.*)$", INDENTED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_and_anchor_leads_somewhere(path: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not link.startswith(("http://", "https://")):
            dead += [] if target.exists() and (not anchor or anchor in anchors(target)) else [link]
    assert dead == []


@pytest.mark.parametrize(("document", "line"), documented())
def test_every_documented_command_exists_and_takes_its_arguments(
    document: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(line, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "jigclu runn table8", "jigclu run table8 --dryrun", "jigclu status --everything", "jigclu data fetch cifar10",
        "make demos", "make report SCALES=mini", "python -m orchestrates status", "python -m orchestrate statsu",
        "python orchestrate/runs.py", "python orchestrate/run.py table8 --gpus many",
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(line, monkeypatch)


def test_the_documents_show_commands_and_the_help_lists_all_of_them() -> None:
    """The two scans above would also pass on an empty list."""
    assert len(documented()) > 40
    assert set(re.findall(r"^  ([a-z]+)  ", HELP, re.MULTILINE)) == set(COMMANDS)


def test_prose_is_wrapped_at_100_columns_and_the_readme_is_short() -> None:
    """Tables and indented blocks may be wider. A line that is one link cannot be wrapped."""
    long = [
        f"{path.name}: {line}"
        for path in DOCUMENTS
        for line in INDENTED.sub("", path.read_text()).splitlines()
        if len(line) > 100 and not line.startswith("|") and " " in line.strip()
    ]
    assert long == []
    prose = re.sub(r"^\|.*\n", "", INDENTED.sub("", GUIDES[0].read_text()), flags=re.MULTILINE)
    assert len(prose.split()) <= 900


def test_the_readmes_python_loads_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in blocks(GUIDES[0]) if "import torch" in block]
    weights = {name: value + 1 for name, value in resnet18().state_dict().items() if not name.startswith("fc.")}
    torch.save(weights, tmp_path / "encoder.pt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.equal(names["network"].conv1.weight, weights["conv1.weight"])


# -- the recipes ------------------------------------------------------------------------------------------------------
def insert(path: Path, before: str, text: str) -> None:
    content = path.read_text()
    assert content.count(before) == 1, (path, before)
    path.write_text(content.replace(before, text + before))


def recipe(name: str, *beginnings: str) -> list[str]:
    """The blocks of docs/<name>.md that begin with these words."""
    found = blocks(ROOT / "docs" / f"{name}.md")
    return [next(block for block in found if block.startswith(beginning)) for beginning in beginnings]


def add_method(tree: Path) -> None:
    config, union, code, line, overlay, row = recipe(
        "add-a-method", "class RotationConfig", "_AnyMethod", '"""Rotation', '"rotation":', "# Rotation", "- {key"
    )
    schemas = tree / "jigclu" / "config" / "methods.py"
    schemas.write_text(re.sub(r"^_AnyMethod = .*\n", lambda _: f"{config}\n\n{union}", schemas.read_text(), flags=re.M))
    (tree / "jigclu" / "methods" / "rotation.py").write_text(code)
    insert(tree / "jigclu" / "methods" / "__init__.py", '    "jigclu":', textwrap.indent(line, "    "))
    (tree / "experiments" / "methods" / "rotation.yaml").write_text(overlay)
    insert(tree / "experiments" / "table9.yaml", "  - {key: random,", textwrap.indent(row, "  "))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the three recipes applied as they are written."""
    tree = tmp_path_factory.mktemp("recipes")
    for package in ("jigclu", "jigclu_cli", "orchestrate", "detection", "reports", "experiments"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    add_method(tree)
    record, scale = recipe("add-a-data-set", "DatasetSpec(", "stl10:")
    insert(tree / "jigclu" / "config" / "datasets.py", "DATASETS: dict", f"_SPECS += (\n{record})\n")
    insert(tree / "experiments" / "scales" / "mini.yaml", "  imagenet100:", f"  {scale}")
    (table,) = recipe("add-a-table", "# Larger batches")
    (tree / "experiments" / "batch.yaml").write_text(table)
    return tree


def run(tree: Path, *words: str) -> str:
    command = [sys.executable, str(tree / "orchestrate" / "run.py"), *words]
    done = subprocess.run(command, cwd=tree, env=environment(tree / "runs"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plan(tree: Path, *words: str) -> str:
    command = [sys.executable, str(tree / "orchestrate" / "run.py"), *words, "--dry-run"]
    done = subprocess.run(command, cwd=tree, env=environment(tree / "runs"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_recipes_plan_their_jobs(extended: Path) -> None:
    lines = plan(extended, "table8", "--scale", "mini", "--set", "pretrain.data.name=stl10")
    assert "pretrain resnet18 stl10" in lines and "linear resnet18 stl10" in lines and "imagenette" not in lines
    lines = plan(extended, "batch", "--scale", "smoke")
    assert all(f"[{key}]" in lines for key in ("half", "full", "random"))
    assert "[rotation]" in plan(extended, "table9", "--scale", "smoke")


def test_the_recipe_for_a_method_trains_it(extended: Path) -> None:
    data = {"name": "scenes", "canvas": 32, "train_images": 8}
    runtime = {"threads": 1, "workers": 0}
    config = {"method": {"name": "rotation"}, "data": data, "backbone": "resnet18", "image_size": 32, "batch_size": 4}
    config |= {"epochs": 1, "precision": "float32", "runtime": runtime}
    code = f"""
from pathlib import Path
from jigclu.config import parse
from jigclu.job_folder import JobFolder
from jigclu.stages import pretrain
folder = JobFolder(Path("job")).create()
pretrain.run(parse("pretrain", {config!r}), folder.path)
assert folder.done and (folder.path / "encoder.pt").exists()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=extended, env=environment(extended / "runs"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
