"""The report, from real job folders through the real mirror and a real MLflow store."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.report import FAILURE, NASTY, ROOT, by_cell, run

from orchestrate import mirror
from orchestrate.mirror.store import connect
from orchestrate.planning import experiments
from orchestrate.planning.experiments import Cell, Experiment
from reports import __main__, assemble, frames, publish, records, table_files, tables


def uploaded(store: Path) -> dict[str, int]:
    files = (store / "mlartifacts" / "jigclu-mini-tables").rglob("table8-*")
    return {path.name: path.stat().st_mtime_ns for path in files}


def test_second_report_is_byte_equal_and_adds_nothing_to_mlflow(half_store: Path, out: Path, tmp_path: Path) -> None:
    before = uploaded(half_store)
    assert set(before) == {f"table8-mini-official.{kind}" for kind in ("md", "csv", "tex", "png", "pdf")}
    run(half_store, tmp_path)
    assert uploaded(half_store) == before
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in out.iterdir()}
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_table_is_uploaded_again_when_its_bytes_changed(half_store: Path, out: Path) -> None:
    client = connect(mirror.tracking_uri(half_store))
    loaded = frames.load(client, ["mini"])
    table = assemble.assemble(loaded, experiments.find(["table8"]), ["mini"])[0]
    files = table_files.write_one(table)
    files.pop(f"{table.stem}.svg")
    assert not publish.upload(client, table, files)
    assert publish.upload(client, replace(table, digest="of older bytes"), files)


def test_half_a_table_shows_what_is_missing_and_why(out: Path) -> None:
    text = (out / "table8-mini-official.md").read_text()
    added = ("random init", "random init, BN calibrated", "3, cell share", "4, cell share")
    assert f"| m | 2 | 3 | 4 | {' | '.join(f'{column} (not in the paper)' for column in added)} |" in text
    assert "| Accuracy (%) | 61.5 ± 2.1 (n=2) | n/a | failed | not run | not run | not run | not run |" in text
    assert "| printed | 80.9 | 74.7 | 70.1 | |" in text.replace("  |", " |")
    assert "−19.4" not in text  # no measure: another data set and network
    assert (
        "Not run: random; random, BN calibrated; m=3 cell share; m=4 cell share. To run: jigclu run table8 --scale mini\n"
        in text
    )
    assert FAILURE in text
    page = (out / "index.html").read_text()
    assert "loss is NaN at step 310 | epoch 3 &lt;b&gt;" in page and "<b>" not in page
    assert "not comparable to the printed ones" in page
    for shown in (
        "bbbbbbbbbb00",
        "aaaaaaaaaa00",
        "--only bbbbbbbbbb00",
        "a CPU, 2 threads",
        "1 min 30 s",
        "data:image/png",
    ):
        assert shown in page


def test_results_json_has_every_cell_of_every_shown_table(half_store: Path, out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    ledger = experiments.find(["table8"])[0]
    shown = list(dict.fromkeys((one["scale"], one["protocol"], one["variant"]) for one in results["cells"]))
    variant = "linear.milestones=[0.3, 0.6] linear.epochs=3"
    assert shown == [("mini", "official", ""), ("smoke", "official", ""), ("smoke", "paper", variant)]
    smoke = ["m=2", "m=3", "m=4", "random"]  # a table of seven jobs: the demo
    every = [cell.key for cell in ledger.all_cells]
    assert len(every) == 7 and [one["cell"] for one in results["cells"]] == every + smoke * 2
    cell = by_cell(results)["m=2"]
    assert (cell["value"], cell["n"], cell["seeds"], cell["values"]) == (61.5, 2, [0, 1], [60.0, 63.0])
    assert cell["std"] == pytest.approx(4.5**0.5) and cell["difference"] == pytest.approx(61.5 - 80.9)
    assert cell["jobs"] == ["bbbbbbbbbb00", "bbbbbbbbbb01"] and cell["commit"] == "c0ffee" * 6
    assert cell["command"] == "jigclu run table8 --scale mini --seeds 2 --cells m=2"
    states = {key: (one["state"], one["value"]) for key, one in by_cell(results).items() if key != "m=2"}
    assert states == dict.fromkeys(every[3:], ("not run", None)) | {"m=3": ("done", None), "m=4": ("failed", None)}
    assert by_cell(results)["random"]["reference"] and not cell["reference"] and not cell["comparable"]
    assert results["run"]["jobs"] == {"done": 6, "failed": 1, "pending": 1, "running": 1}
    with open(out / "table8-mini-official.csv", newline="") as file:
        assert [line["cell"] for line in csv.DictReader(file)] == every


def test_one_seed_has_the_binomial_interval_of_its_validation_set(out: Path) -> None:
    cell = by_cell(json.loads((out / "results.json").read_text()), "smoke")["random"]
    assert cell["half_width_95"] == pytest.approx(4.9, abs=0.01)  # 1.96 * sqrt(0.5 * 0.5 / 400)
    assert "random ±4.9" in (out / "table8-smoke-official.md").read_text()


def test_variant_names_its_overrides_in_the_command(out: Path) -> None:
    texts = [path.read_text() for path in out.glob("table8-smoke-paper-*.md")]
    assert len(texts) == 1
    assert "--protocol paper --set 'linear.milestones=[0.3, 0.6]' --set linear.epochs=3" in texts[0]


def test_fullest_scale_comes_first_and_the_larger_of_equals() -> None:
    filled = {"smoke": 1, "mini": 3, "paper": 1}
    rows = [{"scale": scale, "value": 50.0} for scale, count in filled.items() for _ in range(count)]
    rows += [{"scale": "smoke", "value": math.nan}] * 5
    cells_frame = pd.DataFrame(rows, columns=frames.CELL_COLUMNS)
    loaded = frames.Frames(
        pd.DataFrame(columns=frames.JOB_COLUMNS), cells_frame, pd.DataFrame(columns=frames.TABLE_COLUMNS)
    )
    assert assemble.fullest_first(loaded) == ["mini", "paper", "smoke"]


def test_flags_choose_scales_in_the_order_given(half_store: Path, tmp_path: Path) -> None:
    results = run(half_store, tmp_path, "--scale", "smoke", "mini", "--protocol", "official", "--targets", "m")
    assert results["run"]["scales"] == ["smoke", "mini"] and results["run"]["protocols"] == ["official"]


def test_a_report_without_runs_says_how_to_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "runs", tmp_path / "out")["cells"] == []
    assert "jigclu run table8 --scale smoke" in (tmp_path / "out" / "index.html").read_text()
    assert "No runs yet" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_named_experiment_without_runs_is_shown_cell_by_cell(tmp_path: Path) -> None:
    results = run(tmp_path / "runs", tmp_path / "out", "--scale", "mini", "--targets", "table8")
    assert {one["state"] for one in results["cells"]} == {"not run"} and len(results["cells"]) == 7
    assert (tmp_path / "out" / "table8-mini-official.pdf").read_bytes().startswith(b"%PDF")


def test_every_output_has_the_checked_claims(
    half_store: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((out / "results.json").read_text())
    ledger = experiments.find(["table8"])[0]
    mini = [one for one in results["claims"] if one["scale"] == "mini"]
    assert [one["text"] for one in mini] == [claim.text for claim in ledger.claims]
    assert [one["outcome"] for one in mini] == ["not run", "not run"] and len(results["claims"]) == 3 * 2
    assert mini[0]["reason"] == "missing: m=3 (n/a); m=4 (failed)." and mini[0]["source"] == "§3.1, §5.3"
    sums = [
        (one["scale"], one["protocol"], one["checked"], one["holds"], one["not run"])
        for one in results["run"]["claims"]
    ]
    assert sums == [("mini", "official", 2, 0, 2), ("smoke", "official", 2, 0, 2)]  # a variant does not count
    line = "m = 2 is best (§3.1, §5.3): missing: m=3 (n/a); m=4 (failed)."
    assert f"- **not run**: {line}\n" in (out / "table8-mini-official.md").read_text()
    assert rf"\textbf{{not run}}: {tables.escape(line)}" in (out / "table8-mini-official.tex").read_text()
    page = (out / "index.html").read_text()
    assert "missing: m=3 (n/a); m=4 (failed)." in page and 'href="#table8-mini-official"' in page
    run(half_store, tmp_path, "--scale", "mini")
    said = capsys.readouterr().out
    assert f"- **not run**: {line}" in said and said.count("2 claims checked: 2 not run") == 2  # of the table, of all


def test_cited_and_inapplicable_cells_are_shown_but_not_counted(tmp_path: Path) -> None:
    results = run(tmp_path / "runs", tmp_path, "--scale", "paper", "--targets", "table1", "table7")
    pirl = by_cell(results, "paper")["PIRL"]
    assert (pirl["state"], pirl["cited"], pirl["printed"], pirl["value"], pirl["difference"]) == (
        *("cited", "[26]", 63.6),
        *(None, None),
    )
    assert by_cell(results, "paper")["montage"]["state"] == "not applicable" and pirl["command"] == ""
    assert results["run"]["cells"] == 7 + 5 * 4 + 5  # Table 1 with the costs of what it trains
    text = (tmp_path / "table1-paper-official.md").read_text()
    assert "| PIRL | cited |  |  |  |  |\n| printed | 63.6 |  |  |  |  |\n| SimCLR | not run | not run |" in text
    assert (
        "Not run: Supervised; JigClu; MoCo; SimCLR; MoCo v2; Random init; Random init, BN calibrated. To run:" in text
    )
    assert "PIRL [26]" in text
    text = (tmp_path / "table7-paper-official.md").read_text()
    assert "| Aug after montage | not applicable |\n| Random init (not in the paper) |" in text
    assert "0 of 32" in (tmp_path / "index.html").read_text()


def test_a_figure_without_printed_numbers_shows_measured_ones_only(tmp_path: Path) -> None:
    run(tmp_path / "runs", tmp_path, "--scale", "mini", "--targets", "figure7")
    text = (tmp_path / "figure7-mini-official.md").read_text()
    assert "| JigClu | not run |" in text and "| printed |" not in text
    assert (
        "| read |  |  |  | 70.9 |  |  |  |" in text
        and '<span class="word">read </span>70.9' in (tmp_path / "index.html").read_text()
    )


def test_missing_artifacts_leave_the_numbers(half_store: Path, tmp_path: Path) -> None:
    folder, aside = half_store / "mlartifacts" / "jigclu-mini", half_store / "aside"
    folder.rename(aside)
    try:
        assert by_cell(run(half_store, tmp_path))["m=2"]["value"] == 61.5
    finally:
        aside.rename(folder)
    assert "data:image/png" not in (tmp_path / "index.html").read_text()


def test_an_out_folder_that_cannot_be_written_is_one_line(
    half_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert __main__.main(["--store", str(half_store), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"reports: cannot write to {out} (") and error.count("\n") == 1


def test_a_table_without_a_run_is_not_uploaded(half_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = connect(mirror.tracking_uri(half_store))
    (table,) = assemble.assemble(frames.load(client, ["mini"]), experiments.find(["table9"]), ["mini"], named=True)
    assert not table.run_id and not publish.upload(client, table, {"table9.md": b"text"})
    assert capsys.readouterr().err == ""


def test_unreachable_server_is_one_line(
    half_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert __main__.main(["--store", str(half_store), "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["warning", "reports"]


def test_an_unknown_name_is_an_error_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, word, right in (
        ("--scale", "minni", "mini"),
        ("--protocol", "papr", "paper"),
        ("--targets", "tabel8", "table8"),
    ):
        assert __main__.main([flag, word]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"did you mean {right}?" in error


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]


def test_page_needs_no_network(out: Path) -> None:
    text = (out / "index.html").read_text()
    links = _Links()
    links.feed(text)
    assert {"svg", "img", "details", "style"} <= links.tags and not links.tags & {"script", "link", "iframe", "object"}
    assert all(link.startswith(("#", "data:", "http://127.0.0.1:5151/#/experiments/")) for link in links.targets)
    assert "@import" not in text and not [part for part in text.split("url(")[1:] if not part.startswith("#")]


def nasty_table() -> records.Table:
    cell = Cell(key="a", row=NASTY, column="b", report="linear.top1", printed=1.25)
    words: dict[str, Any] = {"title": NASTY, "source": "§1", "topic": "t", "unit": "% top-1"}
    experiment = Experiment(name="table0", recipe={"linear": {}}, cells=(cell,), **words)
    message = f"{NASTY} \N{SNOWMAN}"
    result = records.Result(cell=cell, reference=False, state="failed", message=message)
    return records.Table(experiment=experiment, scale="paper", protocol="official", variant="", results=(result,))


def test_latex_escapes_special_characters() -> None:
    wanted = r"100\% of \#1 \& \$x\_1\textasciicircum{}2\$ \textasciitilde{} \{a\textbackslash{}b\} \textbar{} "
    assert tables.escape(NASTY) == wanted + r"\textless{}c\textgreater{} \S{} \textperiodcentered{} é"
    assert "☃" not in tables.latex(nasty_table())


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_compiles_on_its_own(out: Path, tmp_path: Path) -> None:
    shutil.copy(out / "table8-mini-official.tex", tmp_path / "half.tex")
    (tmp_path / "nasty.tex").write_text(tables.latex(nasty_table()), encoding="utf-8")
    for name in ("half.tex", "nasty.tex"):
        words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]


def test_markdown_keeps_special_characters_in_their_cell() -> None:
    text = tables.markdown(nasty_table())
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.replace(r"\|", "").count("|") for line in lines} == {3}


def test_reports_never_imports_torch(half_store: Path, tmp_path: Path) -> None:
    code = "import sys; from reports.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "--store", str(half_store), "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "index.html"), "False"]
    assert done.stderr == ""
