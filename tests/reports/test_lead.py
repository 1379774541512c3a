"""The top of the page says whether the method works here, before anything else; the terminal says the same in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.report import add_job, by_cell, run, use
from matplotlib.image import imsave

from jigclu.config.methods import JigCluConfig, MoCoConfig, SimCLRConfig

PUZZLE = {
    "recovered_images": 87.5, "recovered_chance": 35.5, "recovered_images_untrained": 38.0,
    "recovered_places": 41.0, "recovered_places_chance": 8.9, "recovered_patches": 256,
}  # fmt: skip
CHANCE = JigCluConfig().chance_loss(50)


@pytest.fixture
def demo(store: Path) -> Path:
    """A finished Table 8 at scale smoke; with m = 4 the loss ended at chance."""
    for m, loss, top1 in ((2, 0.75, 70.0), (3, 0.8, 60.0), (4, 0.995, 45.0)):
        config = {"backbone": "resnet10", "data": {"name": "textures"}, "method": {"name": "jigclu", "m": m}}
        metrics = {"loss": loss * CHANCE, "chance_loss": CHANCE, **(PUZZLE if m == 2 else {})}
        encoder = f"aaaaaaaaaa0{m}"
        folder = add_job(store, encoder, scale="smoke", config=config, metrics=metrics)
        folder.log(1, 0.1, loss=20.0)
        imsave(folder.path / "figures" / "recovery.png", [[[0.1, 0.5, 0.2]] * 8] * 8)
        _probe(store, f"bbbbbbbbbb0{m}", f"m={m}", top1, upstream=[encoder])
    _probe(store, "bbbbbbbbbb00", "random", 28.0)
    return store


def _probe(store: Path, job_id: str, cell: str, top1: float, **more: object) -> None:
    config = {"backbone": "resnet10", "data": {"name": "textures"}}
    metrics = {"top1": top1, "val_images": 2000}
    folder = add_job(store, job_id, use(cell, "smoke"), scale="smoke", config=config, metrics=metrics, **more)
    imsave(folder.path / "figures" / "neighbours.png", [[[0.1, 0.5, 0.2]] * 8] * 8)


def test_the_page_begins_with_the_puzzle_and_the_terminal_ends_with_words(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(demo, tmp_path / "out")
    page, said = (
        (tmp_path / "out" / "index.html").read_text().replace("\xa0", " "),
        capsys.readouterr().out.splitlines(),
    )
    words = (
        "puts 88 % of the patches back with their own image (by chance 36 %, before training 38 %), and 41 % also in "
        "their own place (by chance 9 %)."
    )
    accuracy = "is right for 70.0 % (± 2.0) of the validation images, on random weights for 28.0 % (± 2.0); guessing gives 10 %."
    assert said[-4].endswith(words) and said[-3].endswith(accuracy) and said[-1].endswith("out/index.html")
    assert said[-2].startswith("With m = 4 the loss ended at chance")
    order = [
        "The puzzle",
        words,
        accuracy,
        "Random weights</span>",
        "What is this page?",
        'id="claims"',
        "<h3>",
        "Cost</h2>",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "the pattern, in any colour, size and direction" in page  # what a class is


def test_where_printed_values_are_no_measure_the_gain_over_random_weights_is_shown(demo: Path, tmp_path: Path) -> None:
    cells = by_cell(run(demo, tmp_path / "out"), "smoke")
    assert [cells[key]["over_random"] for key in ("m=2", "m=3", "m=4", "random")] == [42.0, 32.0, 17.0, None]
    assert {cell["chance"] for cell in cells.values()} == {10.0}
    text = (tmp_path / "out" / "table8-smoke-official.md").read_text()
    assert (
        "| over random weights | +42.0 | +32.0 | +17.0 |" in text and "difference" not in text and "−10.9" not in text
    )
    assert "here: ResNet-10 on textures" in text and "Guessing is right for 10.0 % of the images." in text
    assert "over random weights" in (tmp_path / "out" / "table8-smoke-official.tex").read_text()
    page = (tmp_path / "out" / "index.html").read_text()
    assert "+42.0 over random weights" in page and "−10.9" not in page and "here: ResNet-10 on textures" in page


def test_a_cell_whose_loss_ended_at_chance_says_so(demo: Path, tmp_path: Path) -> None:
    cells = by_cell(run(demo, tmp_path / "out"), "smoke")
    assert [key for key, cell in cells.items() if cell["loss_at_chance"]] == ["m=4"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("its loss ended at chance") == 1 and ">chance</text>" in page  # and the line in the panels
    assert "The pretraining loss ended at chance" in (tmp_path / "out" / "table8-smoke-official.md").read_text()


def test_the_loss_at_chance_is_that_of_equal_scores() -> None:
    assert pytest.approx(0.3 / 0.07 * 5.2933 + 1.3863, abs=1e-3) == CHANCE  # ln(50 * 4 - 1), ln 4
    plain = JigCluConfig(m=3, loss_scale="paper", location_weight=0.0)
    assert plain.chance_loss(50) == pytest.approx(6.1070, abs=1e-3)  # ln(50 * 9 - 1)
    assert SimCLRConfig().chance_loss(50) == pytest.approx(4.5951, abs=1e-3)  # ln 99
    assert MoCoConfig(queue=1000).chance_loss(50) == pytest.approx(6.9088, abs=1e-3)  # ln 1001
