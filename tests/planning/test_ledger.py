"""The ledger against the paper's own text: every printed number is a cell, every cell that can run is planned."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from helpers.orchestrator import ROOT, environment

from orchestrate.planning import experiments, overlays
from orchestrate.planning.claims import Reaches
from orchestrate.planning.experiments import Experiment
from orchestrate.planning.plan import make_plan

# Numbers that the paper prints in each of its tables; a table of the ledger that is not the paper's needs no entry.
PRINTED = dict(zip((f"table{n}" for n in range(1, 10)), (15, 6, 24, 12, 10, 9, 3, 3, 3), strict=True))
FIGURES = ("figure4", "figure7")  # those that show numbers
TYPOS = {"deepculster": "deepcluster"}  # the paper's
NO_LABEL = ("single-batch", "dual-batches", "Na")  # words of a row that do not belong to its name
Rows = list[tuple[str, list[float]]]


@pytest.fixture(scope="module")
def paper(data_root: Path) -> str:
    """The paper's text, in the folder beside the data root."""
    found = sorted((data_root.resolve().parent / "paper").glob("*.txt"))
    if not found:
        pytest.skip(f"no real data: no text of the paper in {data_root.resolve().parent / 'paper'}")
    return found[0].read_text(encoding="utf-8")


def block(text: str, number: int) -> list[list[str]]:
    """The tab-separated lines above a table's caption, as fields without markup and citation marks."""
    lines = text.splitlines()
    (caption,) = [index for index, line in enumerate(lines) if line.startswith(f"Table {number}.")]
    end = max(index for index in range(caption) if "\t" in lines[index])
    start = max(index for index in range(end) if "\t" not in lines[index]) + 1
    fields = [line.split("\t") for line in lines[start : end + 1]]
    return [[re.sub(r"<.*?>|\[\d+(, \d+)*\]|\*", "", field).strip() for field in line] for line in fields]


def printed_rows(text: str, number: int) -> Rows:
    """(label, numbers) of a table's rows in the paper. The first line is a header: Table 8's 2, 3, 4 are no results.

    A label is all of a row's words; a heading over several rows (Table 5) is carried down; a tick (Table 9) names its column.
    """
    header, *lines = block(text, number)
    rows: Rows = []
    over = ""
    for line in lines:
        matches = [re.fullmatch(r"(-?\d+(?:\.\d+)?)(?:h|MB)?", field) for field in line]
        ticks = [header[index].split()[0] for index, field in enumerate(line) if field == "✓"]
        words = [" and ".join(ticks)] if ticks else [
            field for field, number in zip(line, matches, strict=True)
            if not number and re.search("[A-Za-z]", field) and field not in NO_LABEL
        ]  # fmt: skip
        if any(matches) and len(words) > 1:
            over = words[0]
        elif over:
            words = [over, *words]
        if any(matches) or "Na" in line:
            rows.append((", ".join(words), [float(match[1]) for match in matches if match]))
    return rows


def ledger_rows(experiment: Experiment) -> Rows:
    rows: dict[str, list[float]] = {}
    for cell in experiment.cells:
        rows.setdefault(cell.row, []).extend([] if cell.printed is None else [cell.printed])
    return list(rows.items())


def plain(label: str) -> str:
    """A label without case, spaces and signs."""
    letters = re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKC", label).lower())
    return TYPOS.get(letters, letters)


def differences(text: str, experiment: Experiment) -> list[str]:
    """The differences between the ledger and the paper's table; empty if they agree."""
    paper, ledger = printed_rows(text, int(experiment.name.removeprefix("table"))), ledger_rows(experiment)
    numbers = [Counter(value for _, values in rows for value in values) for rows in (paper, ledger)]
    found = [f"missing: {value}" for value in (numbers[0] - numbers[1]).elements()]
    found += [f"not in the paper: {value}" for value in (numbers[1] - numbers[0]).elements()]
    by_paper, by_ledger = ({plain(label): values for label, values in rows} for rows in (paper, ledger))
    if list(by_paper) != list(by_ledger):
        found.append(f"rows: the paper has {list(by_paper)}, the ledger {list(by_ledger)}")
    return found + [
        f"row {label}: {values} and {by_ledger.get(label)}"
        for label, values in by_paper.items()
        if values != by_ledger.get(label)
    ]


# -- the numbers ------------------------------------------------------------------------------------------------------
def test_the_parser_finds_every_printed_number(paper: str) -> None:
    """Otherwise an empty table would equal an empty ledger."""
    assert {name: sum(len(values) for _, values in printed_rows(paper, int(name[5:]))) for name in PRINTED} == PRINTED
    assert dict(printed_rows(paper, 6))["(a) Small-size Patch"] == [67.0, 5.5, 2700.0]
    assert dict(printed_rows(paper, 5))["linear, Supervised"] == [62.5, 41.0]


@pytest.mark.parametrize("name", PRINTED)
def test_a_table_has_the_papers_numbers_row_by_row(paper: str, name: str) -> None:
    assert differences(paper, experiments.load_all()[name]) == []


@pytest.mark.parametrize("name", PRINTED)
def test_a_wrong_or_missing_or_added_number_is_found(paper: str, name: str) -> None:
    right = experiments.load_all()[name]
    index = next(index for index, cell in enumerate(right.cells) if cell.printed is not None)
    cell = right.cells[index]
    wrong = cell.model_copy(update={"printed": (cell.printed or 0) + 0.1})
    extra = cell.model_copy(update={"key": "extra", "row": "Extra"})
    before, after = right.cells[:index], right.cells[index + 1 :]
    for cells in ((*before, wrong, *after), (*before, *after), (*right.cells, extra)):
        assert differences(paper, right.model_copy(update={"cells": cells}))


def test_two_swapped_rows_are_found(paper: str) -> None:
    right = experiments.load_all()["table2"]
    pairs = zip(right.cells, right.cells[::-1], strict=True)
    swapped = [cell.model_copy(update={"printed": other.printed}) for cell, other in pairs]
    assert differences(paper, right.model_copy(update={"cells": tuple(swapped)}))


# -- what can run --------------------------------------------------------------------------------------------------
def test_every_table_and_figure_of_the_paper_with_numbers_is_an_experiment() -> None:
    assert {*PRINTED, *FIGURES} <= experiments.load_all().keys()


def test_an_experiment_is_found_by_name_and_by_topic() -> None:
    for name, experiment in experiments.load_all().items():
        assert experiments.find([name]) == experiments.find([experiment.topic]) == [experiment]


def test_the_topics_in_the_readme_are_those_of_the_ledger() -> None:
    """The README names all of the paper's tables and figures; others may be missing there."""
    rows = re.findall(r"^\| ((?:`(?:table|figure)\d+` ?)+)\| ((?:`\w+` ?)+)\|", (ROOT / "README.md").read_text(), re.M)
    listed = dict(zip(*(re.findall(r"\w+", " ".join(column)) for column in zip(*rows, strict=True)), strict=True))
    topics = {name: experiment.topic for name, experiment in experiments.load_all().items()}
    assert {*PRINTED, *FIGURES} <= listed.keys() and listed.items() <= topics.items()


def test_every_claim_names_cells_of_its_experiment() -> None:
    for experiment in experiments.load_all().values():
        keys = {cell.key for cell in experiment.all_cells}
        assert experiment.claims, experiment.name
        for claim in experiment.claims:
            own = {key for key in claim.cells if "/" not in key}  # those of other experiments are checked on loading
            assert own <= keys and len(set(claim.cells)) == len(claim.cells), claim.text
            assert not isinstance(claim.relation, Reaches) or claim.relation.at in claim.relation.series


@pytest.mark.parametrize("protocol", overlays.overlays("protocols"))
@pytest.mark.parametrize("scale", overlays.overlays("scales"))
def test_every_cell_that_runs_is_planned(scale: str, protocol: str) -> None:
    ledger = list(experiments.load_all().values())
    plan = make_plan(ledger, scale, protocol)
    planned = {(use.experiment, use.cell) for job in plan.jobs.values() for use in job.uses}
    assert planned == {
        (experiment.name, cell.key)
        for experiment in ledger
        for cell in experiment.under(protocol, scale).all_cells
        if cell.runs
    }
    assert len(planned) > 120 and {experiment.name for experiment in ledger} == {name for name, _ in planned}


def test_planning_the_whole_paper_takes_under_two_seconds(tmp_path: Path) -> None:
    """CPU seconds of the process: the machine may be busy with something else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, str(ROOT / "orchestrate" / "run.py"), "all", "--scale", "paper", "--dry-run"]
    done = subprocess.run(words, env=environment(tmp_path / "runs"), capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pretrain resnet50") > 10
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2.0
