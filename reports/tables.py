"""Tables of cells -> Markdown, CSV, LaTeX and results.json. Same table, same bytes."""

from __future__ import annotations

from reports import verdicts
from reports.formatting import MINUS, PLUS_MINUS, number, places, printed, printed_places
from reports.frames import finite
from reports.records import Result, Table

OURS_ONLY = "ours only"
ENOUGH = 1000  # images; a detector tested on fewer has so few boxes of most categories that their mean AP is noise
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


def ours(table: Table, result: Result) -> str:
    """What stands in our cell: mean, spread and n where there are several seeds; else the state in a word."""
    if result.value is None:
        return result.lacking
    shown = number(result.value, places(table, result))
    if result.n > 1:
        shown += f" {PLUS_MINUS} {number(result.std or 0.0, places(table, result))} (n={result.n})"
    return shown if result.state == "done" else f"{shown} ({result.state})"


def subtitle(table: Table) -> str:
    words = [table.experiment.source, f"scale {table.scale}", f"protocol {table.protocol}", ", ".join(table.units)]
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
    """What a reader must know beside the numbers: comparability, single seeds, failures, gaps, what no run fills."""
    lines = [comparability(table)]
    single = [result for result in table.results if result.half_width is not None]
    if single:
        widths: dict[str, list[str]] = {}
        for one in single:
            widths.setdefault(number(one.half_width, places(table, one)), []).append(one.cell.key)
        each = (f"{', '.join(keys)} {PLUS_MINUS}{width}".strip() for width, keys in widths.items())
        lines.append(f"One seed; half-width of the binomial 95 % interval on the validation images: {'; '.join(each)}.")
    if any(result.n > 1 for result in table.results):
        lines.append(f"{PLUS_MINUS}: sample standard deviation over n seeds.")
    lines += unfilled(table) + stale(table)
    for result in table.results:
        if result.state == "failed":
            lines.append(f"{result.cell.key} failed: {result.message or 'no message'}")
    missing = [result.cell.key for result in table.results if result.missing]
    if missing:
        lines.append(f"Not run: {', '.join(missing)}. To run: {table.command}")
    return [line for line in lines if line]


def unfilled(table: Table) -> list[str]:
    """What stands in the table without a run of ours, how what is the machine's was measured, and what was measured on too few
    images; a sentence each."""
    lines = []
    cited = dict.fromkeys(f"{r.cell.row} {r.cell.cited}" for r in table.results if r.cell.cited is not None)
    if cited:
        lines.append(f"Cited: the paper took these from other papers, and nothing is run for them: {', '.join(cited)}.")
    for result in table.results:
        if result.cell.not_applicable is not None:
            lines.append(f"{result.cell.row}: not applicable: {result.cell.not_applicable}.")
    measured = dict.fromkeys(f"{r.cell.column}: {r.measured}" for r in table.results if r.measured)
    if measured:
        lines.append(f"Measured by the pretraining itself, of whatever machine it ran on. {'; '.join(measured)}.")
    return lines + too_few(table)


def stale(table: Table) -> list[str]:
    """One sentence where numbers were made by other code than the tree's, which may give others."""
    keys = [result.cell.key for result in table.results if result.stale]
    return [f"Stale, made by other code than the tree's: {', '.join(keys)}."] if keys else []


def too_few(table: Table) -> list[str]:
    """Of detectors tested on fewer than ENOUGH images: how few, and which columns to read; a sentence each such test set."""
    columns = {one.cell.metric: one.cell.column for one in table.results if one.cell.stage == "detect"}
    lines = []
    for job in table.jobs:
        told = {name.removeprefix("result."): value for name, value in job.metrics.items() if finite(value) is not None}
        if job.stage != "detect" or told.get("val_images", ENOUGH) >= ENOUGH:
            continue
        over = f"{told['categories']:.0f} categories" if "categories" in told else "every category"
        line = f"{told['val_images']:.0f} {photographs(table)} are too few for AP over {over} to mean much"
        meant = {"agnostic_ap": " (AP as if every box were of one class)", "person_ap": ""}
        beside = [columns[name] + words for name, words in meant.items() if name in told and name in columns]
        lines.append(f"{line}: read {' and '.join(beside)} beside it." if beside else f"{line}.")
        lines.append("They are smaller than COCO's, so small, medium and large are other objects than there.")
    return list(dict.fromkeys(lines))


def photographs(table: Table) -> str:
    """What the table's detectors look at, in a word or two."""
    names = {job.params.get("data.name") for job in table.jobs if job.stage == "detect"}
    return "drawn scenes" if names == {"coco_scenes"} else "photographs"


def claim_line(one: verdicts.Judged) -> str:
    """`outperforms ... (§1): 80.9 ...`: a claim with its place in the paper and what our numbers say of it."""
    return f"{one.claim.text} ({one.claim.source}): {one.reason}"


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the paper's layout: up to three lines a row (ours, printed, difference)."""
    grid = table.grid
    only = {column for column in table.columns if all(r.reference for r in table.results if r.cell.column == column)}
    header = [table.experiment.layout.corner]
    header += [f"{column} ({OURS_ONLY})" if column in only else column for column in table.columns]
    lines = []
    for row in table.rows:
        results = [grid.get((row, column)) for column in table.columns]
        there = [result for result in results if result is not None]
        wholly_ours = all(result.reference for result in there)
        name = f"{row} ({OURS_ONLY})" if wholly_ours and not only else row
        lines.append([name, *(ours(table, r) if r else "" for r in results)])
        if any(result.cell.printed is not None for result in there):
            lines.append(["printed", *(printed(table, r) if r else "" for r in results)])
            if any(result.computed for result in there):
                lines.append(["difference", *(difference(table, r) if r else "" for r in results)])
    return header, lines


def difference(table: Table, result: Result) -> str:
    """Ours less printed, with its sign and the printed decimals; "" where one of them is missing."""
    return number(result.difference, printed_places(table, table.unit(result.cell)), sign=True)


def markdown(table: Table) -> str:
    header, lines = _grid(table)

    def line(words: list[str]) -> str:
        return "| " + " | ".join(" ".join(word.replace("|", "\\|").split()) for word in words) + " |\n"

    text = f"### {table.experiment.title}\n\n{subtitle(table)}\n\n"
    text += line(header) + line([":--", *["--:"] * (len(header) - 1)]) + "".join(map(line, lines))
    text += "".join(f"\n{' '.join(note.split())}\n" for note in notes(table))
    claims = [f"- **{one.outcome}**: {claim_line(one)}\n" for one in verdicts.judged(table)]
    return text + (f"\nClaims:\n\n{''.join(claims)}" if claims else "")


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
            *(
                rf"\par\smallskip\footnotesize\raggedright \textbf{{{one.outcome}}}: {escape(claim_line(one))}"
                for one in verdicts.judged(table)
            ),
            r"\end{table}",
            r"\end{document}",
            "",
        ]
    )
