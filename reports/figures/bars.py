"""Tables as bars, measured beside printed. No pyplot, no display; same input, same bytes."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.figures.style import FAINT, INK, KINDS, MEASURED, PRINTED, WIDTH, save, style
from reports.formatting import number, places, printed
from reports.records import Result, Table
from reports.tables import NOT_IN_PAPER, measured_text

MANY = 24  # cells of a panel; if there are more, only those that run are drawn


def label(table: Table, result: Result) -> str:
    """The cell's row and column in the paper's table, in as few words as identify it."""
    corner = f"{table.experiment.layout.corner} = " if table.experiment.layout.corner and not result.reference else ""
    if len(table.rows) == 1:
        return corner + result.cell.column
    return result.cell.row if len(table.columns) == 1 else f"{result.cell.row}, {result.cell.column}"


def bars(table: Table) -> dict[str, bytes]:
    """The table as bars, top to bottom in the ledger's order, one panel per unit: {"png", "pdf", "svg"}.

    A cited cell has only its printed bar, a cell that does not apply has none. In a large panel only cells that run do.
    A panel without any bar is left out, unless none has one. If
    the printed values are no measure, they have no bars, and lines show random weights and guessing instead.
    """
    shown = [result for result in table.results if result.cell.not_applicable is None]
    if not table.comparable and any(result.value is not None for result in shown):
        shown = [result for result in shown if result.cell.runs]
    panels = [_panel_cells(table, shown, unit) for unit in table.units]
    panels = [panel for panel in panels if any(_has_bar(table, result) for result in panel)] or list(
        filter(None, panels)
    )
    heights = [0.35 + 0.55 * sum(map(_height, panel)) for panel in panels]
    with style():
        figure = Figure(figsize=(WIDTH, 0.4 + sum(heights)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _panel(axes, table, panel)
        handles: dict[str, Any] = {}
        position: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "borderaxespad": 0.2}
        if any(_beside(table, result) for result in shown):
            handles = {"measured": Patch(color=MEASURED), "printed": Patch(color=PRINTED)}
        elif any(table.chance(result) for result in shown):
            handles = {"guessing": Line2D([], [], color=INK, linestyle=":", linewidth=1)}
        if handles:
            grid.flat[0].legend([*handles.values()], [*handles], **position)
        return {kind: save(figure, kind) for kind in KINDS}


def _panel_cells(table: Table, shown: list[Result], unit: str) -> list[Result]:
    """The cells of one unit."""
    found = [result for result in shown if table.unit(result.cell) == unit]
    return found if len(found) <= MANY else [result for result in found if result.cell.runs]


def _has_bar(table: Table, result: Result) -> bool:
    return result.value is not None or _beside(table, result) is not None


def _height(result: Result) -> float:
    """Height of the cell's bars, in units of two bars."""
    return 1.0 if result.computed else 0.6


def _panel(axes: Axes, table: Table, results: list[Result]) -> None:
    """The bars of one unit, on their own axis."""
    middles, edge = [], 0.0
    for result in results:
        middles.append(edge + _height(result) / 2)
        edge += _height(result)
        _bar(axes, middles[-1], table, result)
    column = results[0].cell.column
    # If a column has its own unit, as time and memory have, the axis names the column and the bars need not.
    own_axis = len(table.units) > 1 and all(result.cell.column == column for result in results)
    axes.set_yticks(middles, [_axis_label(table, result, own_axis) for result in results])
    axes.set_ylim(edge, 0)
    axes.set_xlim(*_limits(table, results))
    axes.set_xlabel(column if own_axis else table.unit(results[0].cell))
    levels = {level for result in results if (level := table.chance(result)) is not None}
    if not table.comparable and len(levels) == 1:
        axes.axvline(levels.pop(), color=INK, linestyle=":", linewidth=1)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)


def _axis_label(table: Table, result: Result, row_only: bool) -> str:
    words = textwrap.fill(result.cell.row if row_only else label(table, result), 24, break_long_words=False)
    if result.reference:
        return f"{words}\n({NOT_IN_PAPER})"
    return words if result.computed else f"{words} (cited)"


def _bar(axes: Axes, position: float, table: Table, result: Result) -> None:
    printed_value, value = _beside(table, result), result.value
    both = printed_value is not None and result.computed
    above, below = (position - 0.19, position + 0.19) if both else (position, position)
    if value is not None:
        spread = (result.std or 0.0) if result.n > 1 else result.half_width or 0.0
        hatch = "///" if result.reference else None
        axes.barh(above, value, height=0.34, color=MEASURED, hatch=hatch, edgecolor="white", linewidth=0)
        if spread:
            axes.errorbar(value, above, xerr=spread, color=INK, capsize=2.5, elinewidth=1, capthick=1)
        _write(axes, max(value, 0) + spread, above, number(value, places(table, result)))
    elif result.computed:
        _write(axes, 0, above, measured_text(table, result), style="italic")
    if printed_value is not None:
        axes.barh(below, printed_value, height=0.28, color=PRINTED)
        _write(axes, max(printed_value, 0), below, printed(table, result))


def _beside(table: Table, result: Result) -> float | None:
    """The printed value, if it is drawn: it is a measure of the others, or the cell has no other."""
    return result.cell.printed if table.comparable or not table.done or not result.computed else None


def _write(axes: Axes, x: float, y: float, text: str, style: str = "normal") -> None:
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, style=style)


def proof(pairs: list[tuple[str, Result]], chance: float | None) -> bytes:
    """A short SVG of a few measured accuracies with their intervals, above a line at `chance`, the accuracy of guessing."""
    with style():
        figure = Figure(figsize=(2 * WIDTH, 0.5 + 0.42 * len(pairs)), layout="constrained")
        axes = figure.add_subplot()
        for position, (_, result) in enumerate(pairs):
            value, spread = result.value or 0.0, (result.std or 0.0) if result.n > 1 else result.half_width or 0.0
            axes.barh(position, value, height=0.62, color=PRINTED if result.cell.method is None else MEASURED)
            axes.errorbar(value, position, xerr=spread, color=INK, capsize=4, elinewidth=1.3, capthick=1.3)
            _write(axes, value + spread, position, f"{number(value, 1)} %")
        if chance is not None:
            axes.axvline(chance, color=INK, linestyle=":", linewidth=1)
            text: dict[str, Any] = {"xytext": (3, 1), "textcoords": "offset points", "va": "bottom", "fontsize": 8}
            axes.annotate("guessing", (chance, 1), xycoords=("data", "axes fraction"), **text)
        axes.set_yticks(range(len(pairs)), [name for name, _ in pairs], fontsize=9)
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the validation images right, linear classifier on frozen features")
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        return save(figure, "svg")


def _limits(table: Table, results: list[Result]) -> tuple[float, float]:
    """From zero, because a bar's length is its value, with room for the number after the longest bar."""
    values = [value for result in results for value in (result.value, _beside(table, result)) if value is not None]
    spread = max(((result.std if result.n > 1 else result.half_width) or 0.0 for result in results), default=0.0)
    low, high = min([0.0, *values]), max([0.0, *values]) + spread
    return (low * 1.12, high * 1.12) if high > low else (0.0, 1.0)
