"""Table 4 in the report: added columns, numbers that a data set cannot give, too few photographs, boxes on photographs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.mlflow import make_job, use
from helpers.orchestrator import prepared_store
from matplotlib.image import imsave

from jigclu.files import write_json
from orchestrate import mirror
from orchestrate.mirror.store import connect
from orchestrate.planning import experiments
from reports import __main__, assemble, frames, tables
from reports.page import page

KEYS = {one.key: one for one in experiments.find(["table4"])[0].all_cells}
ROWS = {"MoCo v2": "moco v2", "JigClu": "m=2", "Supervised": "supervised", "random": "random init"}
COCO_MINI = {
    "data": {"name": "coco_mini", "train_images": None},
    "backbone": "resnet18",
    "solver": {"schedule": 1.0, "batch_size": 4, "lr": 0.01},
    "sizes": {"train": [224], "test": 256, "longest": 512},
    "precision": "bfloat16",
}
SCENES = COCO_MINI | {"data": {"name": "coco_scenes", "train_images": 500}}
MEASURED = {"ap": 4.25, "ap50": 9.5, "ap75": 3.0, "agnostic_ap": 21.5, "agnostic_ap50": 44.0}
NOTE = "are too few for AP over"
FIGURE = "Boxes on the first validation"


TEMPLATES: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def databases(template: Path) -> None:
    """A store here is a copy of an empty migrated database: migrating one takes seconds."""
    TEMPLATES.append(template)


def add_row(
    store: Path, row: str, config: dict[str, Any], metrics: dict[str, float], images: int, classes: int, **more: Any
) -> Path:
    """The folder of the job of a row of Table 4, with a picture except for `Supervised`. `classes`: a detail of its result."""
    if not store.exists():
        store.parent.mkdir(exist_ok=True)
        prepared_store(store, TEMPLATES[-1])
    job_id = f"{list(ROWS).index(row):012x}"
    uses = [
        use(key, experiment="table4", metric=one.metric)
        for key, one in KEYS.items()
        if key.startswith(row) and one.stage == "detect"
    ]
    name = f"detect resnet18 {config['data']['name']} {ROWS[row]} seed 0"
    folder = make_job(store, job_id, stage="detect", name=name, config=config, uses=uses)
    folder.write_result(metrics, seconds=60.0, device="a CPU", val_images=images, categories=classes, **more)
    if row != "Supervised":
        imsave(folder.path / "figures" / "predictions.png", [[[0.1, 0.5, len(row) / 10]] * 8] * 8)
    return folder.path


def report(store: Path, out: Path) -> dict[str, Any]:
    """results.json of Table 4 at scale mini; the other files are beside it."""
    words = ["--store", str(store), "--out", str(out), "--scale", "mini", "--targets", "table4"]
    assert __main__.main(words) == 0
    return dict(json.loads((out / "results.json").read_text()))


def lines_of(out: Path) -> list[str]:
    return (out / "table4-mini-official.md").read_text().splitlines()


def row_of(out: Path, row: str) -> dict[str, str]:
    """Column -> the row's measured numbers."""
    split = [[word.strip() for word in line.strip("|").split("|")] for line in lines_of(out) if line.startswith("|")]
    return next(dict(zip(split[0], words, strict=True)) for words in split if words[0] == row)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of four detectors tested on 206 photographs with people on them."""
    folder = tmp_path_factory.mktemp("photographs")
    for row in ROWS:
        add_row(folder / "runs", row, COCO_MINI, MEASURED | {"proposal_ar100": 12.5}, 206, 80)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        report(folder / "runs", folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one detector tested on drawn scenes, which have no people; one of its numbers is missing."""
    folder = tmp_path_factory.mktemp("scenes")
    add_row(folder / "runs", "JigClu", SCENES, {key: value for key, value in MEASURED.items() if key != "ap"}, 300, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        report(folder / "runs", folder / "out")
    return folder / "out"


def test_a_number_that_no_result_has_is_not_shown_as_nan(scenes: Path) -> None:
    shown = row_of(scenes, "JigClu (Ours)")
    assert (shown["AP"], shown["APs"], shown["AR@100 of proposals (not in the paper)"]) == ("n/a", "n/a", "n/a")
    text = (scenes / "index.html").read_text()
    assert ">n/a</a>" in text and "NaN" not in text
    results = json.loads((scenes / "results.json").read_text())
    assert results["claims"][0]["reason"] == "missing: JigClu AP (n/a); MoCo v2 AP (not run)."


def test_added_columns_follow_those_of_the_paper(photographs: Path) -> None:
    shown = row_of(photographs, "JigClu (Ours)")
    added = ["AP any class", "AP50 any class", "AR@100 of proposals", "AP of object cells", "AP of person cells"]
    added = [f"{column} (not in the paper)" for column in added]
    assert list(shown)[1:] == ["AP", "AP50", "AP75", "APs", "APm", "APl", *added]
    assert [shown[column] for column in ("AP", *added[:3])] == ["4.2", "21.5", "44.0", "12.5"]
    assert {row_of(photographs, row)[added[2]] for row in ("Supervised", "MoCo v2")} == {"12.5"}


def test_a_note_says_that_photographs_are_too_few_and_which_columns_to_read(photographs: Path) -> None:
    (line,) = [line for line in lines_of(photographs) if NOTE in line]
    assert line.startswith("206 photographs are too few for AP over ")
    assert line.endswith(" to mean much: read AP any class (AP as if every box were of one class) beside it.")
    assert line in (photographs / "index.html").read_text()


def test_the_note_counts_the_categories_in_mlflow(photographs: Path) -> None:
    loaded = frames.load(connect(mirror.tracking_uri(photographs.parent / "runs")), ["mini"])
    for metrics in loaded.jobs["metrics"]:
        metrics["result.categories"] = 80.0
    (table,) = assemble.assemble(loaded, experiments.find(["table4"]), ["mini"])
    line, sizes = tables.too_few(table)
    assert line.startswith("206 photographs are too few for AP over 80 categories to mean much: read ")
    assert "small, medium and large mean other objects" in sizes


def test_scenes_are_named_as_what_they_are(scenes: Path) -> None:
    (line,) = [line for line in lines_of(scenes) if NOTE in line]
    assert line.startswith("300 drawn scenes are") and "AP any class" in line


def test_a_detector_of_one_class_says_so(tmp_path: Path) -> None:
    one = COCO_MINI | {"detector": {"classes": "object"}}
    add_row(tmp_path / "runs", "JigClu", one, MEASURED, 206, 1)
    report(tmp_path / "runs", tmp_path / "out")
    text = "\n".join(lines_of(tmp_path / "out"))
    assert "The detectors learn one class, object, and are scored on it" in text and NOTE not in text


# -- the control ------------------------------------------------------------------------------------------------------
NOT_INFORMATIVE = "Not informative: "


def controlled(folder: Path, supervised: float, **half_widths: float) -> str:
    """The report's text where random weights have an AP50 any class of 8.0 and supervised ones `supervised`."""
    for row, value in (("random", 8.0), ("Supervised", supervised)):
        metrics = MEASURED | {"agnostic_ap50": value}
        add_row(folder / "runs", row, COCO_MINI, metrics, 206, 80, half_widths=half_widths)
    report(folder / "runs", folder / "out")
    return "\n".join(lines_of(folder / "out"))


def test_a_table_whose_control_is_within_the_noise_is_not_informative(tmp_path: Path) -> None:
    text = controlled(tmp_path, 9.5, agnostic_ap50=1.5)
    assert (
        f"{NOT_INFORMATIVE}Supervised AP50 any class (9.5) is not above random AP50 any class (8.0) by more than the "
        "noise of the 206 validation images (±2.1). The order of the cells means nothing."
    ) in text
    assert NOT_INFORMATIVE in (tmp_path / "out" / "index.html").read_text()


def test_a_table_whose_control_is_above_its_floor_says_nothing(tmp_path: Path) -> None:
    assert NOT_INFORMATIVE not in controlled(tmp_path, 10.5, agnostic_ap50=1.5)


def test_a_control_without_a_bootstrap_or_without_a_run_decides_nothing(tmp_path: Path, photographs: Path) -> None:
    assert (
        f"{NOT_INFORMATIVE}its control, Supervised AP50 any class above random AP50 any class, was scored"
        in controlled(tmp_path / "old", 60.0)
    )
    add_row(tmp_path / "runs", "JigClu", COCO_MINI, MEASURED, 206, 80)
    report(tmp_path / "runs", tmp_path / "out")
    assert (
        f"{NOT_INFORMATIVE}its control, Supervised AP50 any class above random AP50 any class, has not been run"
        in "\n".join(lines_of(tmp_path / "out"))
    )


def test_the_control_is_compared_on_the_same_resamples_where_both_jobs_have_theirs(tmp_path: Path) -> None:
    """Supervised is 1.5 above random give or take 0.3 on every draw of the images, which move both by 10."""
    for row, value in (("random", 8.0), ("Supervised", 9.5)):
        draws = [value + 10 * math.sin(draw) + (value > 9) * 0.3 * math.cos(7 * draw) for draw in range(1000)]
        more = {"half_widths": {"agnostic_ap50": 9.9}}
        folder = add_row(tmp_path / "runs", row, COCO_MINI, MEASURED | {"agnostic_ap50": value}, 206, 80, **more)
        write_json(folder / "resampled.json", {"agnostic_ap50": draws})
    report(tmp_path / "runs", tmp_path / "out")
    assert NOT_INFORMATIVE not in "\n".join(lines_of(tmp_path / "out"))
    assert "±14.0" in controlled(tmp_path / "apart", 9.5, agnostic_ap50=9.9)


def test_the_bootstrap_is_in_mlflow(tmp_path: Path) -> None:
    controlled(tmp_path, 9.5, agnostic_ap50=1.5, ap=0.25)
    loaded = frames.load(connect(mirror.tracking_uri(tmp_path / "runs")), ["mini"])
    found = [metrics for metrics in loaded.jobs["metrics"] if "result.half_width.ap" in metrics]
    assert len(found) == 2
    assert all((one["result.half_width.ap"], one["result.half_width.agnostic_ap50"]) == (0.25, 1.5) for one in found)


def test_enough_photographs_need_no_note(tmp_path: Path) -> None:
    add_row(tmp_path / "runs", "JigClu", COCO_MINI, MEASURED, 5000, 80)
    report(tmp_path / "runs", tmp_path / "out")
    assert NOTE not in (tmp_path / "out" / "table4-mini-official.md").read_text()


def test_the_page_shows_the_boxes_of_every_encoder_that_drew_them(photographs: Path) -> None:
    text = (photographs / "index.html").read_text()
    figure = text[text.index(f"{FIGURE} photographs: annotated (left)") :].partition("</figure>")[0]
    for label in ("m=2", "moco v2", "random init"):
        assert f'alt="Annotated and predicted boxes, {label}"' in figure and f">{label}</span>" in figure
    assert figure.count("data:image/png;base64,") == 3 and "supervised" not in figure


def test_page_without_pictures_of_boxes_has_no_such_figure(tmp_path: Path) -> None:
    add_row(tmp_path / "runs", "Supervised", COCO_MINI, MEASURED, 206, 80)
    report(tmp_path / "runs", tmp_path / "out")
    assert FIGURE not in (tmp_path / "out" / "index.html").read_text()


def test_the_config_of_a_detector_is_one_line(scenes: Path) -> None:
    config = "data coco_scenes, train_images 500, backbone resnet18, schedule 1.0, batch_size 4, lr 0.01, test_size 256"
    assert f"{config}, precision bfloat16" in (scenes / "index.html").read_text()
    assert set(page.LABELS) <= {key for keys in page.HIGHLIGHTS.values() for key in keys}
