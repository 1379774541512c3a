"""Documents: links resolve, and the commands exist and take these arguments."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.orchestrator import ROOT

from jigclu_cli.__main__ import COMMANDS, HELP

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"^(?:\.venv/bin/)?(?:python|make|jigclu)(?: |$)")
MODULES = {"orchestrate/run.py": "orchestrate.run"}


class Parsed(Exception):
    """The arguments were accepted; nothing was run."""


def commands(text: str) -> Iterator[str]:
    """Commands of indented blocks and of `code` in the text, without comments."""
    for line in text.splitlines():
        if line.startswith("    "):
            yield line.strip()
    yield from re.findall(r"(?<!`)`([^`\n]+)`", text)


def documented() -> list[tuple[str, str]]:
    found = [(path.name, line) for path in DOCUMENTS for line in commands(path.read_text())]
    return sorted({(name, line) for name, line in found if COMMAND.match(line)})


def check_make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in words:
        if "=" in word:
            assert re.search(rf"\b{word.split('=')[0]}\b", text), f"make knows no {word}"
        else:
            assert re.search(rf"^{re.escape(word)}:", text, re.MULTILINE), f"make has no target {word}"


def parse_only(monkeypatch: pytest.MonkeyPatch, module: str, words: list[str]) -> None:
    """Calls the command's main with these words, and stops it as soon as they are parsed."""
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: Any, **more: Any) -> Any:
        real(self, *args, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(Parsed):
        importlib.import_module(module).main(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    relative = [link.split("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert [link for link in relative if not (path.parent / link).exists()] == []


@pytest.mark.parametrize(("document", "line"), documented())
def test_every_documented_command_exists_and_takes_its_arguments(
    document: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = shlex.split(line, comments=True)
    if not words:
        return
    if program == "make":
        return check_make(words)
    if Path(program).name == "jigclu":
        name = words[0]
        assert name in (*COMMANDS, "--version", "COMMAND"), line
        if len(words) > 1 or name in ("run", "report"):
            module, is_verb = COMMANDS[name]
            parse_only(monkeypatch, module, words if is_verb else words[1:])
        return
    if words[0] == "-m":
        module, words = words[1], words[2:]
        path = ROOT.joinpath(*module.split("."))
        assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), line
        module = f"{module}.__main__"
    else:
        assert (ROOT / words[0]).is_file(), line
        module, words = MODULES.get(words[0], ""), words[1:]
    if words and module:
        parse_only(monkeypatch, module, words)


def test_the_help_text_lists_every_command() -> None:
    assert set(re.findall(r"^  ([a-z]+)  ", HELP, re.MULTILINE)) == set(COMMANDS)


def test_the_readme_fits_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 1100
    assert len(documented()) > 30
