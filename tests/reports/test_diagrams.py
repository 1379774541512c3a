"""The report's drawings: bars, lines, the diagrams of the method, and the pictures of the first batch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imsave

from orchestrate.planning import experiments
from reports import assemble, frames, records
from reports.figures import bars, curves, diagrams, style
from reports.page import gallery, page

PARAMS = {"method.name": "jigclu", "method.m": "2", "image_size": "80", "backbone": "resnet18"}
PICTURES = ("montage", "split", "patches", "inputs")


def table_of(name: str, values: dict[str, float], scale: str = "mini", **more: Any) -> records.Table:
    """The experiment with these values in its cells, one seed each, as the report assembles it from MLflow's frames."""
    record: dict[str, Any] = {"table": name, "scale": scale, "protocol": "official", "variant": "", "run_id": ""}
    record |= {"state": "done", "published_verdict": "", "measured": "", "std": None, "n": 1}
    record |= {"jobs": [], "commits": [], "values": [], "seeds": []} | more
    rows = [{**record, "cell": cell, "value": value} for cell, value in values.items()]
    loaded = frames.Frames(
        pd.DataFrame(columns=frames.JOB_COLUMNS),
        pd.DataFrame(rows, columns=frames.CELL_COLUMNS),
        pd.DataFrame(columns=frames.TABLE_COLUMNS),
    )
    return assemble.assemble(loaded, experiments.find([name]), [scale], named=True)[0]


def job(folder: Path, job_id: str = "aaaaaaaaaaaa", state: str = "done", **params: str) -> records.Job:
    """A pretraining whose artifacts are in `folder`."""
    return records.Job(
        job=job_id,
        name=f"pretrain {job_id} seed 0",
        stage="pretrain",
        state=state,
        uri=str(folder),
        params=PARAMS | {key.replace("__", "."): value for key, value in params.items()},
    )


def draw_pictures(folder: Path, *names: str) -> Path:
    (folder / "figures").mkdir(parents=True)
    for name in names:
        imsave(folder / "figures" / f"{name}.png", np.zeros((4, 4, 3)))
    return folder


def words(svg: bytes) -> str:
    """An SVG's text: it is text there, not outlines."""
    return " | ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode()))


# -- bars -------------------------------------------------------------------------------------------------------------
def test_a_cited_cell_has_only_its_printed_bar() -> None:
    drawn = words(bars.bars(table_of("table1", {"JigClu": 60.25, "MoCo": 50.25}, scale="paper"))["svg"])
    assert "(cited)" in drawn and "63.8" in drawn and "60.2" in drawn and drawn.count("not run") == 5


def test_in_a_large_table_only_cells_that_run_are_drawn() -> None:
    drawn = words(bars.bars(table_of("table3", {}))["svg"])
    assert "MoCo v2" in drawn and "PIRL" not in drawn and "(cited)" not in drawn


def test_each_unit_has_its_own_axis() -> None:
    drawn = words(
        bars.bars(
            table_of("table6", {"montage accuracy": 70.0, "montage time": 0.083, "small memory": 900}, scale="paper")
        )["svg"]
    )
    assert all(axis in drawn for axis in ("Accuracy (%)", "Time (h)", "Memory (MB)")) and "0.083" in drawn
    assert "7300" in drawn and "7300.0" not in drawn


def test_a_cell_that_does_not_apply_has_no_bar() -> None:
    assert "montage" not in words(bars.bars(table_of("table7", {}))["svg"])


# -- lines ------------------------------------------------------------------------------------------------------------
def test_a_figure_is_drawn_with_a_line_per_row_over_its_columns() -> None:
    values = {f"{row} {x}": 40.0 + int(x) / 10 for row in ("JigClu", "SimCLR") for x in ("40", "120", "200")}
    table = table_of("figure4", values)
    files = curves.lines(table)
    assert set(files) == {"png", "pdf", "svg"} and files == curves.lines(table)
    drawn = words(files["svg"])
    assert all(word in drawn for word in ("JigClu", "SimCLR", "40", "120", "200", "% top-1")) and "printed" not in drawn


def test_an_axis_of_shares_says_so_at_other_scales_than_the_papers() -> None:
    note = "share of the scale's own epochs"
    assert curves.abscissa(table_of("figure4", {})) == f"epochs ({note})"
    assert curves.abscissa(table_of("figure4", {}, scale="paper")) == "epochs"
    assert curves.abscissa(table_of("figure7", {})) == "overlap x"


def test_lines_without_values_say_that_nothing_was_run() -> None:
    assert "not run" in words(curves.lines(table_of("figure7", {}))["svg"])


# -- diagrams ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("draw", [diagrams.pipeline, diagrams.augmentation])
def test_a_diagram_has_the_same_bytes_each_time_and_the_pages_colours(draw: Any) -> None:
    svg = draw(PARAMS)
    assert svg == draw(dict(PARAMS))
    text = style.for_page(svg)
    assert text.startswith("<svg") and "currentColor" in text and style.INK not in text and "<script" not in text


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        (PARAMS, ["80 × 80 pixels", "ResNet-18", "3 × 3 × 512", "enlarge to 4 × 4", "n·2·2 vectors", "4 logits"]),
        ({}, ["224 × 224 pixels", "ResNet-50", "7 × 7 × 2048", "enlarge to 8 × 8", "z: 128 numbers"]),
        ({"method.m": "3", "image_size": "96"}, ["3 × 3 × 2048", "3 is already a multiple of 3", "9 logits"]),
    ],
)
def test_the_pipeline_has_the_sizes_of_the_job(params: dict[str, str], shown: list[str]) -> None:
    drawn = words(diagrams.pipeline(params))
    assert [word for word in shown if word not in drawn] == []


# -- the method in pictures -------------------------------------------------------------------------------------------
def test_the_pictures_are_those_of_the_first_finished_plain_job(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path, *PICTURES)
    jobs = [
        job(folder, "000000000000", state="running"),
        job(folder, "111111111111", method__name="moco"),
        job(folder, "222222222222", method__m="3"),
        job(folder, "333333333333", method__input="small"),
        job(folder, "444444444444", method__augment="before"),
        job(folder, "555555555555", method__extend="0.0"),  # without overlap
        job(folder, "666666666666", method__location_weight="0.0"),  # with one branch
        job(folder, "777777777777", method__input="montage", method__augment="after", method__extend="0.15"),
        job(folder, "888888888888"),
    ]
    found = gallery.gallery(None, jobs)
    assert found is not None and found.job.job == "777777777777"
    numbers = [picture.name.split(",")[0] for picture in found.pictures]
    assert numbers == ["Figure 1", "Figure 1", "Figure 2", "Figure 3", "Figure 5", "Figure 6"]
    assert gallery.gallery(None, jobs[:5]) is None
    alone = gallery.gallery(None, jobs[:6])
    assert alone is not None and alone.job.job == "555555555555"


def test_a_missing_picture_is_left_out(tmp_path: Path) -> None:
    found = gallery.gallery(None, [job(draw_pictures(tmp_path, "montage"))])
    assert found is not None
    assert [picture.name for picture in found.pictures] == ["Figure 1, continued", "Figure 2", "Figure 6"]


def with_jobs(table: records.Table, jobs: list[records.Job]) -> records.Table:
    first, *others = table.results
    return replace(table, results=(replace(first, chains=tuple((one,) for one in jobs)), *others))


def test_pictures_are_shown_once_per_scale_and_name_their_job(tmp_path: Path) -> None:
    one = job(draw_pictures(tmp_path, *PICTURES))
    tables = [with_jobs(table_of(name, {}), [one]) for name in ("table8", "table7")]
    drawn = [page.draw(None, table, bars.bars(table)["svg"]) for table in tables]
    text = page.render(None, drawn, {"mini": []})
    assert text.count("The method in pictures") == 1 and "aaaaaaaaaaaa" in text.split("The method in pictures")[1]
    assert text.count("data:image/png") == len(PICTURES)  # not once more with every table
    assert text == page.render(None, drawn, {"mini": []})


def test_a_table_shows_at_most_four_first_batches(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path, *PICTURES)
    jobs = [job(folder, f"{index:012x}", method__m=str(index + 2)) for index in range(6)]
    table = with_jobs(table_of("table8", {}), jobs)
    drawn = page.draw(None, table, bars.bars(table)["svg"])
    assert len(drawn.montages) == 4 and drawn.more_montages == 2


def test_the_same_figure_twice_has_separate_ids() -> None:
    figure = '<svg><path id="a"/><use href="#a"/><g clip-path="url(#a)"/></svg>'
    assert page.own_ids(f'<p id="a">{figure}{figure}') == '<p id="a">' + "".join(
        f'<svg><path id="a-{n}"/><use href="#a-{n}"/><g clip-path="url(#a-{n})"/></svg>' for n in (0, 1)
    )


def test_dollar_signs_are_text_not_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of("table8", {"m=2": 40.0})
    results = tuple(
        replace(result, cell=result.cell.model_copy(update={"column": "$\\bad{ $" + result.cell.key}))
        for result in table.results
    )
    assert "$\\bad{ $" in words(bars.bars(replace(table, results=results))["svg"])
