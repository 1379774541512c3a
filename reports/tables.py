"""Tables of cells -> Markdown, CSV, LaTeX and results.json. Same table, same bytes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from reports.cells import Result, Table

MINUS, PLUS_MINUS = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"
OURS_ONLY = "ours only"
_LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "{}$&#_%"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    MINUS: "$-$",
    PLUS_MINUS: r"$\pm$",
    "\N{MIDDLE DOT}": r"\textperiodcentered{}",
    "\N{SECTION SIGN}": r"\S{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{RIGHTWARDS ARROW}": r"$\to$",
    "\N{GREEK SMALL LETTER TAU}": r"$\tau$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\n": " ",
}


def digits(table: Table) -> int:
    """Decimals that the paper prints in this table, at least one."""
    printed = [str(result.cell.printed) for result in table.results if result.cell.printed is not None]
    return max([1, *(len(text.partition(".")[2]) for text in printed)])


def number(value: float | None, places: int, sign: bool = False) -> str:
    """`-28.8` with a true minus sign; "" for None."""
    if value is None:
        return ""
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", MINUS)


def ours(result: Result, places: int) -> str:
    """What stands in our cell: mean, spread and n where there are several seeds; else the state in a word."""
    if result.value is None:
        return "NaN" if result.state == "done" else result.state
    shown = number(result.value, places)
    if result.n > 1:
        shown += f" {PLUS_MINUS} {number(result.std or 0.0, places)} (n={result.n})"
    return shown if result.state == "done" else f"{shown} ({result.state})"


def subtitle(table: Table) -> str:
    words = [table.experiment.source, f"scale {table.scale}", f"protocol {table.protocol}", table.experiment.unit]
    return " \N{MIDDLE DOT} ".join([*words, f"with {table.variant}"] if table.variant else words)


def comparability(table: Table) -> str:
    """One sentence where the absolute numbers may not be held against the printed ones; "" where they may."""
    if table.comparable:
        return ""
    if table.scale == "paper":
        return f"Run with {table.variant}, not as printed: absolute numbers are not comparable to the printed ones."
    kinds = dict.fromkeys((job.params.get("backbone", ""), job.params.get("data.name", "")) for job in table.jobs)
    ran = " and ".join(f"{backbone} on {data}" for backbone, data in kinds if backbone and data)
    return (
        f"Scale {table.scale} runs on another data set or backbone than the paper{f' ({ran})' if ran else ''}: absolute "
        "numbers are not comparable to the printed ones, only the order of the cells can be."
    )


def notes(table: Table) -> list[str]:
    """What a reader must know beside the numbers: comparability, single seeds, failures, gaps."""
    lines = [comparability(table)]
    places = digits(table)
    single = [result for result in table.results if result.half_width is not None]
    if single:
        each = ", ".join(f"{result.cell.key} {PLUS_MINUS}{number(result.half_width, places)}" for result in single)
        lines.append(f"One seed; half-width of the binomial 95 % interval on the validation images: {each}.")
    if any(result.n > 1 for result in table.results):
        lines.append(f"{PLUS_MINUS}: sample standard deviation over n seeds.")
    for result in table.results:
        if result.state == "failed":
            lines.append(f"{result.cell.key} failed: {result.message or 'no message'}")
    missing = [result.cell.key for result in table.results if result.state == "not run"]
    if missing:
        lines.append(f"Not run: {', '.join(missing)}. To run: {table.command}")
    return [line for line in lines if line]


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the paper's layout: three lines a row (ours, printed, difference)."""
    places, grid = digits(table), table.grid
    only = {column for column in table.columns if all(r.reference for r in table.results if r.cell.column == column)}
    header = [table.experiment.layout.corner]
    header += [f"{column} ({OURS_ONLY})" if column in only else column for column in table.columns]
    lines = []
    for row in table.rows:
        results = [grid.get((row, column)) for column in table.columns]
        wholly_ours = all(result is None or result.reference for result in results)
        name = f"{row} ({OURS_ONLY})" if wholly_ours and not only else row
        lines.append([name, *(ours(r, places) if r else "" for r in results)])
        if not wholly_ours:
            lines.append(["printed", *(number(r.cell.printed, places) if r else "" for r in results)])
            lines.append(["difference", *(number(r.difference, places, sign=True) if r else "" for r in results)])
    return header, lines


def markdown(table: Table) -> str:
    header, lines = _grid(table)

    def line(words: list[str]) -> str:
        return "| " + " | ".join(" ".join(word.replace("|", "\\|").split()) for word in words) + " |\n"

    text = f"### {table.experiment.title}\n\n{subtitle(table)}\n\n"
    text += line(header) + line([":--", *["--:"] * (len(header) - 1)]) + "".join(map(line, lines))
    return text + "".join(f"\n{' '.join(note.split())}\n" for note in notes(table))


def escape(text: str) -> str:
    """LaTeX that prints `text`. What pdfLaTeX has no glyph for becomes a question mark, so that the file compiles."""
    return "".join(_LATEX.get(mark, mark if " " <= mark < "\u0100" else "?") for mark in text)


def latex(table: Table) -> str:
    """A complete document: booktabs, the paper's layout, notes below."""
    header, lines = _grid(table)

    def line(words: list[str]) -> str:
        return " & ".join(map(escape, words)) + r" \\"

    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"
    body = []
    for index, words in enumerate(lines):
        if index and words[0] not in ("printed", "difference"):
            body.append(r"\addlinespace")
        body.append(line([f"\N{EN DASH} {words[0]}", *words[1:]] if words[0] in ("printed", "difference") else words))
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage[T1]{fontenc}",
            r"\usepackage[utf8]{inputenc}",
            r"\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}",
            r"\usepackage{textcomp}",
            r"\usepackage{booktabs}",
            r"\usepackage{graphicx}",
            r"\begin{document}",
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape(table.experiment.title)} ({escape(subtitle(table))})}}",
            rf"{fit}{{\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            line(header),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip\footnotesize\raggedright {escape(note)}" for note in notes(table)),
            r"\end{table}",
            r"\end{document}",
            "",
        ]
    )


def commands(table: Table, result: Result) -> list[str]:
    """What recomputes the cell, one command a job; where none was recorded, what fills the table."""
    return list(dict.fromkeys(job.command for job in result.jobs if job.command)) or [table.command]


def record(table: Table, result: Result) -> dict[str, Any]:
    """Everything known of a cell, as plain JSON values: a line of results.json.

    `hardware`, `versions`, `seconds` (wall, of all the jobs behind the cell) and `date` say where the number comes from.
    """
    chain = {job.job: job for jobs in result.chains for job in jobs}.values()
    finished = [job.finished for job in chain if job.finished]
    return {
        "experiment": table.experiment.name,
        "cell": result.cell.key,
        "row": result.cell.row,
        "column": result.cell.column,
        "reference": result.reference,
        "printed": result.cell.printed,
        "value": result.value,
        "std": result.std,
        "n": result.n,
        "difference": result.difference,
        "half_width_95": result.half_width,
        "unit": table.experiment.unit,
        "scale": table.scale,
        "protocol": table.protocol,
        "variant": table.variant,
        "comparable": table.comparable,
        "state": result.state,
        "message": result.message,
        "verdict": result.verdict,
        "values": list(result.values),
        "seeds": list(result.seeds),
        "jobs": [job.job for job in result.jobs],
        "runs": [job.run_id for job in result.jobs],
        "commit": ",".join(result.commits),
        "command": " && ".join(commands(table, result)),
        "hardware": "; ".join(sorted({job.device for job in chain if job.device})),
        "versions": "; ".join(sorted({job.versions for job in chain if job.versions})),
        "seconds": round(sum(job.seconds or 0 for job in chain)),
        "date": f"{datetime.fromtimestamp(max(finished), UTC):%Y-%m-%d}" if finished else "",
    }


def csv(table: Table) -> str:
    """One line a cell; lists are words between spaces."""
    lines = [record(table, result) for result in table.results]
    for line in lines:
        for name in ("values", "seeds", "jobs", "runs"):
            line[name] = " ".join("NaN" if one is None else str(one) for one in line[name])
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def results_json(tables: list[Table], run: dict[str, Any]) -> str:
    """`run`: what was run, in short; `cells`: every cell of every table."""
    cells = [record(table, result) for table in tables for result in table.results]
    return json.dumps({"run": run, "cells": cells}, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
