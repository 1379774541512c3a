"""A figure of the paper as curves: a line a row over its columns, error bars, and printed points where there are any."""

from __future__ import annotations

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.figures.style import FAINT, INK, KINDS, OURS, PRINTED, WIDTH, save, style
from reports.records import Result, Table
from reports.tables import OURS_ONLY

# Okabe and Ito's, after blue: told apart on light and on dark ground, and the markers tell them apart without any hue.
COLOURS, MARKERS = (OURS, "#d55e00", "#009e73", "#cc79a7", "#e69f00"), ("o", "s", "^", "D", "v")


def lines(table: Table) -> dict[str, bytes]:
    """The experiment's rows as lines over its columns, which are numbers; references as dashed levels: {"png", "pdf", "svg"}.

    Error bars: sample standard deviation over the seeds; of one seed the half-width of its binomial 95 % interval.
    """
    rows = {row: [one for one in table.results if one.cell.row == row and not one.reference] for row in table.rows}
    rows = {row: results for row, results in rows.items() if results}
    with style():
        figure = Figure(figsize=(WIDTH, 3.3))
        axes = figure.add_subplot()
        for place, (row, results) in enumerate(rows.items()):
            _line(axes, row, results, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
        for result in table.results:
            if result.reference and result.value is not None:
                name = f"{result.cell.row} ({OURS_ONLY})"
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
    """The x axis' words. At another scale than the paper's, a column that is a share of its epochs stands for another number."""
    words = table.experiment.layout.x or table.experiment.layout.corner
    settings = [value for result in table.results for value in result.cell.set.values()]
    shares = any(isinstance(value, str) and value.endswith("%") for value in settings)
    return f"{words} (share of the scale's own epochs)" if shares and table.scale != "paper" else words


def _line(axes: Axes, row: str, results: list[Result], colour: str, marker: str) -> None:
    measured = [(float(one.cell.column), one.value, _spread(one)) for one in results if one.value is not None]
    there = [(float(one.cell.column), one.cell.printed) for one in results if one.cell.printed is not None]
    if measured:
        x, y, spread = zip(*measured, strict=True)
        axes.errorbar(
            x, y, yerr=spread, label=row, color=colour, marker=marker, markersize=4.5, capsize=2.5, elinewidth=1
        )
    if there:
        x, y = zip(*there, strict=True)
        axes.plot(x, y, color=PRINTED, marker=marker, markersize=4.5, linestyle=":", label=f"{row}, printed")


def _spread(result: Result) -> float:
    return (result.std or 0.0) if result.n > 1 else (result.half_width or 0.0)


def curves(panels: list[tuple[str, list[list[tuple[int, float]]]]], quantity: str) -> bytes:
    """Small multiples on common axes, one (title, a [(step, value)] for every seed) a panel; an SVG."""
    wide = min(3, len(panels))
    high = math.ceil(len(panels) / wide)
    with style():
        figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * high), layout="constrained")
        grid = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
        for place, (axes, (title, lines)) in enumerate(zip(grid.flat, panels, strict=False)):
            for points in lines:
                axes.plot(*zip(*points, strict=True), color=OURS, alpha=0.8 if lines[1:] else 1)
            axes.set_title(textwrap.fill(title, 22, break_long_words=False), fontsize=8)
            axes.grid(color=FAINT, linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
            axes.tick_params(labelsize=7, labelbottom=place + wide >= len(panels))
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("step", fontsize=8)
        figure.supylabel(quantity, fontsize=8)
        return save(figure, "svg")
