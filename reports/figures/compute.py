"""The paper's central claim as a figure: accuracy against what the pretraining cost, for methods side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.curves import COLOURS, MARKERS
from reports.figures.style import FAINT, WIDTH, save, style
from reports.records import Job, Result, Table

Cost = Callable[[Job], float | None]


def _images(job: Job) -> float | None:
    """Images that pass forward through the backbone, in millions; a backward pass counts as two forward passes."""
    seen, forwards = job.metrics.get("result.images_seen"), job.metrics.get("result.forwards")
    return seen * forwards / 1e6 if seen and forwards else None


def _multiply_adds(job: Job) -> float | None:
    """10^15 multiply-adds of the whole pretraining."""
    seen, gmac = job.metrics.get("result.images_seen"), job.metrics.get("result.gmac")
    return seen * gmac / 1e6 if seen and gmac else None


def _hours(job: Job) -> float | None:
    """Hours of training, on all of the job's devices together."""
    hours = job.metrics.get("result.hours")
    return hours * (job.ranks or 1) if hours else None


COSTS: dict[str, Cost] = {
    "images forwarded (millions)": _images,
    "multiply-adds ($10^{15}$)": _multiply_adds,
    "device-hours": _hours,
}


class Point(NamedTuple):
    """A cell: mean cost over its seeds, accuracy, and half of its error bar."""

    cost: float
    value: float
    noise: float
    column: str


def equal_compute(table: Table) -> bytes | None:
    """An SVG: the table's linear accuracies against images forwarded, multiply-adds and device-hours of their pretraining.

    A line for each method over the lengths of a figure; in a table the first column filled, the others hollow. None unless
    at least two pretext methods (without labels) have a value and a counted cost.
    """
    cells = [result for result in table.results if result.cell.report == "linear.top1" and _encoders(result)]
    methods = {job.params.get("method.name") for result in cells for job in _encoders(result)} - {"supervised", None}
    drawn = {name: _rows(cells, cost) for name, cost in COSTS.items()}
    if len(methods) < 2 or len(drawn["images forwarded (millions)"]) < 2:
        return None
    # A figure's columns are the points of one line; a table's are apart.
    columns = [] if table.experiment.layout.plot == "lines" else table.columns
    with style():
        figure = Figure(figsize=(2 * WIDTH, 2.7), layout="constrained")
        panels = figure.subplots(1, len(COSTS), sharey=True)
        for axes, (name, rows) in zip(panels, drawn.items(), strict=True):
            for index, (row, points) in enumerate(rows.items()):
                _draw(axes, row, points, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], columns)
            axes.set_xlabel(name)
            axes.set_xlim(left=0)
            axes.grid(color=FAINT, linewidth=0.6)
        panels[0].set_ylabel(table.experiment.unit)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4)
        return save(figure, "svg")


def _encoders(result: Result) -> list[Job]:
    return (
        [job for chain in result.chains for job in chain if job.stage == "pretrain"] if result.value is not None else []
    )


def _rows(cells: list[Result], cost: Cost) -> dict[str, list[Point]]:
    """Row -> its points, cheapest first; cells whose jobs did not count this cost are left out."""
    rows: dict[str, list[Point]] = {}
    for result in cells:
        costs = [spent for job in _encoders(result) if (spent := cost(job)) is not None]
        if costs and result.value is not None:
            noise = result.noise if result.noise is not None else result.std or 0.0
            point = Point(sum(costs) / len(costs), result.value, noise, result.cell.column)
            rows.setdefault(result.cell.row, []).append(point)
    return {row: sorted(points) for row, points in rows.items()}


def _draw(axes: Axes, row: str, points: list[Point], colour: str, marker: str, columns: list[str]) -> None:
    bars: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "capsize": 2.5, "elinewidth": 1}
    groups = [[point for point in points if point.column == column] for column in columns] or [points]
    for index, group in enumerate(filter(None, groups)):
        x, y, noise = zip(*((point.cost, point.value, point.noise) for point in group), strict=True)
        words: dict[str, Any] = {} if index else {"label": row}
        words |= {"fillstyle": "none"} if columns and group[0].column != columns[0] else {}
        axes.errorbar(x, y, yerr=noise, linestyle="" if columns else "-", **bars, **words)
