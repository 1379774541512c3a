"""Line plots: a figure of the paper with a line per row, and curves over training steps."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.figures.style import FAINT, INK, KINDS, MEASURED, PRINTED, WIDTH, save, style
from reports.records import Result, Table
from reports.tables import NOT_IN_PAPER

# Okabe and Ito's after blue: distinct on light and dark backgrounds; the markers are distinct without any hue.
COLOURS, MARKERS = (MEASURED, "#d55e00", "#009e73", "#cc79a7", "#e69f00"), ("o", "s", "^", "D", "v")


def lines(table: Table) -> dict[str, bytes]:
    """The experiment's rows as lines over its numeric columns, references as dashed levels: {"png", "pdf", "svg"}.

    Error bars: the 95 % noise of other seeds and validation images; where it is unknown, the standard deviation over the
    seeds, or for one seed the half-width of its binomial interval. Hollow marks: what the paper shows without printing it.
    """
    measured_rows = [result for result in table.results if not result.reference]
    rows = {row: [result for result in measured_rows if result.cell.row == row] for row in table.rows}
    rows = {row: results for row, results in rows.items() if results}
    with style():
        figure = Figure(figsize=(WIDTH, 3.3))
        axes = figure.add_subplot()
        for index, (row, results) in enumerate(rows.items()):
            _line(axes, row, results, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        for result in table.results:
            if result.reference and result.value is not None:
                name = f"{result.cell.row} ({NOT_IN_PAPER})"
                axes.axhline(result.value, color=INK, linestyle="--", linewidth=1, label=name)
        columns = list(dict.fromkeys(result.cell.column for results in rows.values() for result in results))
        axes.set_xticks([float(column) for column in columns], columns)
        axes.set_xlabel(abscissa(table))
        axes.set_ylabel(table.experiment.unit)
        axes.grid(color=FAINT, linewidth=0.6)
        if table.done:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1.2)
        else:
            axes.annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center", style="italic")
        return {kind: save(figure, kind) for kind in KINDS}


def abscissa(table: Table) -> str:
    """The label of the x axis. A column that is a share of the epochs means another number at scales other than `paper`."""
    label = table.experiment.layout.x or table.experiment.layout.corner
    settings = [value for result in table.results for value in result.cell.set.values()]
    shares = any(isinstance(value, str) and value.endswith("%") for value in settings)
    return f"{label} (share of the scale's own epochs)" if shares and table.scale != "paper" else label


def _line(axes: Axes, row: str, results: list[Result], colour: str, marker: str) -> None:
    measured = [(float(r.cell.column), r.value, _spread(r)) for r in results if r.value is not None]
    printed = [(float(r.cell.column), r.cell.printed) for r in results if r.cell.printed is not None]
    read = [(float(r.cell.column), r.cell.read) for r in results if r.cell.read is not None]
    if measured:
        x, y, spread = zip(*measured, strict=True)
        axes.errorbar(
            x, y, yerr=spread, label=row, color=colour, marker=marker, markersize=4.5, capsize=2.5, elinewidth=1
        )
    if printed:
        x, y = zip(*printed, strict=True)
        axes.plot(x, y, color=PRINTED, marker=marker, markersize=4.5, linestyle=":", label=f"{row}, printed")
    if read:
        x, y = zip(*read, strict=True)
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linestyle="", fillstyle="none", label=f"{row}, read")


def _spread(result: Result) -> float:
    if result.noise is not None:
        return result.noise
    return (result.std or 0.0) if result.n > 1 else (result.half_width or 0.0)


@dataclass(frozen=True)
class Panel:
    """`lines`: (step, value) of every seed; `chance`: the loss of a network that tells nothing apart, if the job has it."""

    title: str
    lines: list[list[tuple[int, float]]]
    chance: float | None = None


def curves(panels: list[Panel], quantity: str) -> bytes:
    """An SVG of small multiples on shared axes; where chance differs, on the same range relative to chance."""
    shares = [
        value / p.chance for p in panels if p.chance for points in p.lines for _, value in points if value == value
    ]
    low, high = (min([1.0, *shares]) - 0.03, max([1.0, *shares]) + 0.06)
    wide = min(3, len(panels))
    high = math.ceil(len(panels) / wide)
    with style():
        figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * high), layout="constrained")
        grid = figure.subplots(high, wide, sharex=True, sharey=not any(panel.chance for panel in panels), squeeze=False)
        for index, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            for points in panel.lines:
                axes.plot(*zip(*points, strict=True), color=MEASURED, alpha=0.8 if panel.lines[1:] else 1)
            if panel.chance:
                axes.axhline(panel.chance, color=INK, linestyle="--", linewidth=1)
                above = {"xytext": (0, 2), "textcoords": "offset points", "va": "bottom", "ha": "right", "fontsize": 7}
                axes.annotate("chance", (1, panel.chance), xycoords=("axes fraction", "data"), **above)
                axes.set_ylim(low * panel.chance, high * panel.chance)
            axes.set_title(textwrap.fill(panel.title, 22, break_long_words=False), fontsize=8)
            axes.grid(color=FAINT, linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
            axes.tick_params(labelsize=7, labelbottom=index + wide >= len(panels))
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("step", fontsize=8)
        figure.supylabel(quantity, fontsize=8)
        return save(figure, "svg")
