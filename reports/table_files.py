"""A table's files: its texts and its figure. Not in __main__, which worker processes cannot import."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from jigclu.config.machine import usable_cores
from reports import export, tables
from reports.figures import bars, curves
from reports.records import Table

MANY = 6  # tables; from here on it pays to draw them in worker processes


def write_all(shown: list[Table]) -> list[dict[str, bytes]]:
    """The files of each table, on all cores if there are many: drawing is most of the work."""
    cores = len(usable_cores())
    if len(shown) < MANY or cores < 2:
        return list(map(write_one, shown))
    with ProcessPoolExecutor(min(cores, len(shown)), mp_context=multiprocessing.get_context("forkserver")) as pool:
        return list(pool.map(write_one, shown))


def write_one(table: Table) -> dict[str, bytes]:
    """File name -> bytes: .md, .csv, .tex, .png, .pdf, .svg for the page, and for probes -rates.csv, the whole sweep."""
    plot = curves.lines if table.experiment.layout.plot == "lines" else bars.bars
    texts = {"md": tables.markdown(table), "csv": export.csv(table), "tex": tables.latex(table)}
    files = {kind: text.encode() for kind, text in texts.items()} | plot(table)
    named = {f"{table.stem}.{kind}": data for kind, data in files.items()}
    rates = export.rates_csv(table)
    return {**named, f"{table.stem}-rates.csv": rates.encode()} if rates else named
