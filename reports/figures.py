"""Figures: our bars beside the printed ones, and training curves. No pyplot, no display; same input, same bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from reports.cells import Result, Table
from reports.tables import OURS_ONLY, digits, number, ours

WIDTH = 4.7  # inches: two stand side by side on the page, and one is read on a phone without zooming
STYLE = Path(__file__).with_name("style.mplstyle")
# Okabe and Ito's blue against a grey: apart in hue and in lightness, for every kind of colour vision and in print.
OURS, PRINTED, INK, FAINT = "#0072b2", "#9a9fa6", "#1b1f24", "#c9cdd2"
_PAGE_COLOURS = {OURS: "var(--ours)", PRINTED: "var(--printed)", INK: "currentColor", FAINT: "var(--line)"}
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
}


@contextmanager
def _style() -> Iterator[None]:
    inks = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.style.context(["default", STYLE, inks]):
        yield


def _save(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    clear = kind == "svg"  # it stands on the page's ground
    figure.savefig(file, format=kind, metadata=_METADATA[kind], transparent=clear, bbox_inches="tight", pad_inches=0.05)
    return file.getvalue()


def for_page(svg: bytes) -> str:
    """An SVG to stand inside a page: no XML prologue, the page's colours and font, scaled to its column."""
    text = svg.decode()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r'<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r'<svg \1style="max-width:\2pt"', text, count=1)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", "inherit").replace("font-family: inherit", "font-family: var(--font)")
    for colour, name in _PAGE_COLOURS.items():
        text = text.replace(colour, name)
    return text


def label(table: Table, result: Result) -> str:
    """The cell's place in the paper's table, in as few words as tell it apart."""
    corner = f"{table.experiment.layout.corner} = " if table.experiment.layout.corner and not result.reference else ""
    if len(table.rows) == 1:
        return corner + result.cell.column
    return result.cell.row if len(table.columns) == 1 else f"{result.cell.row}, {result.cell.column}"


def bars(table: Table) -> dict[str, bytes]:
    """The table as bars, top to bottom in the ledger's order: {"png", "pdf", "svg"}."""
    results = table.results
    with _style():
        figure = Figure(figsize=(WIDTH, 0.75 + 0.6 * len(results)))
        axes = figure.add_subplot()
        for place, result in enumerate(results):
            _bar(axes, place, result, digits(table))
        axes.set_yticks(range(len(results)), [_axis_label(table, result) for result in results])
        axes.set_ylim(len(results) - 0.45, -0.55)
        axes.set_xlim(*_limits(results))
        axes.set_xlabel(table.experiment.unit)
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        handles = [Patch(color=OURS), Patch(color=PRINTED)]
        axes.legend(handles, ["ours", "printed"], loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
        return {kind: _save(figure, kind) for kind in ("png", "pdf", "svg")}


def _axis_label(table: Table, result: Result) -> str:
    return f"{label(table, result)}\n({OURS_ONLY})" if result.reference else label(table, result)


def _bar(axes: Axes, place: int, result: Result, places: int) -> None:
    printed, value = result.cell.printed, result.value
    above = place if printed is None else place - 0.19
    if value is None:
        _write(axes, 0, above, ours(result, places), style="italic")
    else:
        spread = result.std or 0.0 if result.n > 1 else 0.0
        hatch = "///" if result.reference else None
        axes.barh(above, value, height=0.34, color=OURS, hatch=hatch, edgecolor="white", linewidth=0)
        if spread:
            axes.errorbar(value, above, xerr=spread, color=INK, capsize=2.5, elinewidth=1, capthick=1)
        _write(axes, max(value, 0) + spread, above, number(value, places))
    if printed is not None:
        axes.barh(place + 0.19, printed, height=0.28, color=PRINTED)
        _write(axes, max(printed, 0), place + 0.19, number(printed, places))


def _write(axes: Axes, x: float, y: float, text: str, style: str = "normal") -> None:
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, style=style)


def _limits(results: tuple[Result, ...]) -> tuple[float, float]:
    """From nought, because a bar's length is its value; room for the number behind the longest."""
    values = [one for result in results for one in (result.value, result.cell.printed) if one is not None]
    spread = max((result.std or 0.0 for result in results), default=0.0)
    low, high = min([0.0, *values]), max([0.0, *values]) + spread
    return (low * 1.12, high * 1.12) if high > low else (0.0, 1.0)


def curves(panels: list[tuple[str, list[list[tuple[int, float]]]]], quantity: str) -> bytes:
    """Small multiples on common axes, one (title, a [(step, value)] for every seed) a panel; an SVG."""
    wide = min(3, len(panels))
    high = math.ceil(len(panels) / wide)
    with _style():
        figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * high), layout="constrained")
        grid = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
        for place, (axes, (title, lines)) in enumerate(zip(grid.flat, panels, strict=False)):
            for points in lines:
                axes.plot(*zip(*points, strict=True), color=OURS, alpha=0.8 if lines[1:] else 1)
            axes.set_title(title, fontsize=8)
            axes.grid(color=FAINT, linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
            axes.tick_params(labelsize=7, labelbottom=place + wide >= len(panels))
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("step", fontsize=8)
        figure.supylabel(quantity, fontsize=8)
        return _save(figure, "svg")
