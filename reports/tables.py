"""Tables of cells -> Markdown and LaTeX. Same table, same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrate.mirror.job_content import UNREADABLE
from reports import verdicts
from reports.control import uninformative
from reports.formatting import COUNTED, MINUS, PLUS_MINUS, listed, number, places, printed, printed_places
from reports.frames import finite
from reports.records import Result, Table

NOT_IN_PAPER = "not in the paper"
OVER_RANDOM = "over random weights"
BROKEN = {"failed": "failed", UNREADABLE: "is unreadable"}  # states that need an explanation, in words
SMALLER = "They are smaller than COCO's images, so small, medium and large mean other objects than in COCO."
ENOUGH = 1000  # images; on fewer, most categories have so few boxes that their mean AP is noise
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


def measured_text(table: Table, result: Result) -> str:
    """The measured number: with spread and n if there are several seeds; without a value the state in a word."""
    if result.value is None:
        return result.lacking
    shown = number(result.value, places(table, result))
    if result.n > 1 and table.unit(result.cell) not in COUNTED:
        shown += f" {PLUS_MINUS} {number(result.std or 0.0, places(table, result))} (n={result.n})"
    return shown if result.state == "done" else f"{shown} ({result.state})"


def subtitle(table: Table) -> str:
    words = [table.experiment.source, f"scale {table.scale}", f"protocol {table.protocol}", ", ".join(table.units)]
    words += [f"here: {' and '.join(table.ran)}"] if table.ran else []
    return " \N{MIDDLE DOT} ".join([*words, f"with {table.variant}"] if table.variant else words)


def comparability(table: Table) -> str:
    """One sentence if absolute numbers cannot be compared with the printed ones; "" if they can."""
    if table.comparable:
        return ""
    if table.scale == "paper":
        return f"Run with {table.variant}, not at the paper's settings: absolute numbers are not comparable to the printed ones."
    ran = " and ".join(table.ran)
    return (
        f"Scale {table.scale} uses a different data set or backbone than the paper{f' ({ran})' if ran else ''}: absolute "
        "numbers are not comparable to the printed ones; only the order of the cells can be compared."
    )


def not_informative(table: Table) -> str:
    """A sentence if the table's control is not above its floor; else ""."""
    reason = uninformative(table)
    return f"Not informative: {reason}. The order of the cells means nothing." if reason else ""


def notes(table: Table) -> list[str]:
    """What a reader must know about the numbers: comparability, single seeds, failures, gaps, cells that no run fills."""
    lines = [comparability(table), not_informative(table)]
    single = [(r, r.half_width) for r in table.results if r.half_width is not None and r.noise is None]
    if single:
        lines.append(
            f"One seed; half-width of the binomial 95 % interval on the validation images, without what other seeds "
            f"would change: {_widths(table, single)}."
        )
    if any(result.n > 1 for result in table.results):
        lines.append(f"{PLUS_MINUS}: sample standard deviation over n seeds.")
    if noisy := [(result, result.noise) for result in table.results if result.noise is not None]:
        lines.append(f"Noise, 95 % half-width by other seeds and validation images: {_widths(table, noisy)}.")
    lines += [f"{legend[0].upper()}{legend[1:]}."] if (legend := verdicts.legend(table)) else []
    lines += guessing(table) + at_chance(table) + unfilled(table) + stale(table)
    for result in table.results:
        if result.state in BROKEN:
            lines.append(f"{result.cell.key} {BROKEN[result.state]}: {result.message or 'no message'}")
    missing = [result.cell.key for result in table.results if result.missing]
    if missing:
        lines.append(f"Not run: {listed(missing)}. To run: {table.command}")
    return [line for line in lines if line]


def _widths(table: Table, widths: Sequence[tuple[Result, float | None]]) -> str:
    """`m=2, m=3 +-1.2; m=4 +-1.4`: the cells of each half-width."""
    keys: dict[str, list[str]] = {}
    for result, width in widths:
        keys.setdefault(number(width, places(table, result)), []).append(result.cell.key)
    return "; ".join(f"{', '.join(named)} {PLUS_MINUS}{width}".strip() for width, named in keys.items())


def guessing(table: Table) -> list[str]:
    """The accuracy of guessing, a sentence."""
    levels = dict.fromkeys(number(level, 1) for r in table.results if (level := table.chance(r)) is not None)
    return [f"Guessing is right for {' or '.join(levels)} % of the images."] if levels else []


def at_chance(table: Table) -> list[str]:
    """Which pretrainings have learnt nothing of their own task, a sentence."""
    keys = [result.cell.key for result in table.results if result.at_chance]
    if not keys:
        return []
    return [f"The pretraining loss ended at chance, so these networks have not learnt their task: {listed(keys)}."]


def unfilled(table: Table) -> list[str]:
    """Which cells are not computed here, how time and memory were measured, and what was measured on too few images; a
    sentence each."""
    lines = []
    cited = dict.fromkeys(f"{r.cell.row} {r.cell.cited}" for r in table.results if r.cell.cited is not None)
    if cited:
        lines.append(
            f"Cited: the paper took these numbers from other papers, and they are not computed here: {', '.join(cited)}."
        )
    for result in table.results:
        if result.cell.not_applicable is not None:
            lines.append(f"{result.cell.row}: not applicable: {result.cell.not_applicable}.")
    measured = dict.fromkeys(f"{r.cell.column}: {r.measured}" for r in table.results if r.measured)
    if measured:
        lines.append(f"Measured by the pretraining on the machine that it ran on. {'; '.join(measured)}.")
    return lines + too_few(table)


def stale(table: Table) -> list[str]:
    """A sentence for each thing that has changed since numbers were computed, so that they might be others now; and one
    if cells, or the seeds of one, read different data."""
    reasons: dict[str, list[str]] = {}
    for result in table.results:
        if result.stale and result.state != UNREADABLE:
            reasons.setdefault(result.why_stale, []).append(result.cell.key)
    lines = [f"Stale, {reason}: {listed(keys)}." for reason, keys in reasons.items()]
    if other := [result.cell.key for result in table.results if result.other_recipe]:
        lines.append(f"Computed with another recipe than the experiment files have now: {listed(other)}.")
    return lines + mixed_data(table)


def mixed_data(table: Table) -> list[str]:
    """One sentence if jobs that should read the same data read different data; their numbers cannot be compared."""
    versions: dict[str, dict[str, list[str]]] = {}
    for result in table.results:
        for what, fingerprints in result.data.items():
            for fingerprint in fingerprints:
                versions.setdefault(what, {}).setdefault(fingerprint, []).append(result.cell.key)
    lines = []
    for found in versions.values():
        if len(found) > 1:
            each = "; ".join(f"{fingerprint[:8]}: {', '.join(keys)}" for fingerprint, keys in sorted(found.items()))
            lines.append(f"Computed on different versions of the data, so not comparable (by fingerprint {each}).")
    return list(dict.fromkeys(lines))


def too_few(table: Table) -> list[str]:
    """For detectors tested on fewer than ENOUGH images: how many images, and which columns to read."""
    columns = {result.cell.metric: result.cell.column for result in table.results if result.cell.stage == "detect"}
    lines = []
    for job in table.jobs:
        finite_metrics = {name: value for name, value in job.metrics.items() if finite(value) is not None}
        metrics = {name.removeprefix("result."): value for name, value in finite_metrics.items()}
        if job.stage != "detect" or metrics.get("val_images", ENOUGH) >= ENOUGH:
            continue
        over = f"{metrics['categories']:.0f} categories" if "categories" in metrics else "every category"
        line = f"{metrics['val_images']:.0f} {photographs(table)} are too few for AP over {over} to mean much"
        if (learnt := job.params.get("detector.classes", "all")) != "all":
            lines.append(
                f"The detectors learn one class, {learnt}, and are scored on it: AP is not over all categories."
            )
            lines.append(SMALLER)
            continue
        meant = {"agnostic_ap": " (AP as if every box were of one class)"}
        beside = [columns[name] + words for name, words in meant.items() if name in metrics and name in columns]
        lines.append(f"{line}: read {' and '.join(beside)} beside it." if beside else f"{line}.")
        lines.append(SMALLER)
    return list(dict.fromkeys(lines))


def photographs(table: Table) -> str:
    """The kind of images that the table's detectors were tested on."""
    names = {job.params.get("data.name") for job in table.jobs if job.stage == "detect"}
    return "drawn scenes" if names == {"coco_scenes"} else "photographs"


def claim_line(checked: verdicts.CheckedClaim) -> str:
    """`outperforms ... (§1): 80.9 ...`: a claim with its place in the paper and the measured numbers."""
    return f"{checked.claim.text} ({checked.claim.source}): {checked.reason}"


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the paper's layout: up to three lines per row (measured, printed, difference)."""
    grid = table.grid
    added = {column for column in table.columns if all(r.reference for r in table.results if r.cell.column == column)}
    header = [table.experiment.layout.corner]
    header += [f"{column} ({NOT_IN_PAPER})" if column in added else column for column in table.columns]
    lines = []
    for row in table.rows:
        results = [grid.get((row, column)) for column in table.columns]
        present = [result for result in results if result is not None]
        added_row = all(result.reference for result in present)
        name = f"{row} ({NOT_IN_PAPER})" if added_row and not added else row
        lines.append([name, *(measured_text(table, r) if r else "" for r in results)])
        if any(result.cell.printed is not None for result in present):
            lines.append(["printed", *(printed(table, r) if r else "" for r in results)])
            if table.comparable and any(result.computed for result in present):
                lines.append(["difference", *(difference(table, r) if r else "" for r in results)])
        if any(result.cell.read is not None for result in present):
            lines.append(["read", *(read(table, r) if r else "" for r in results)])
        if any(gain(table, result) for result in present):
            lines.append([OVER_RANDOM, *(gain(table, r) if r else "" for r in results)])
    return header, lines


def gain(table: Table, result: Result) -> str:
    """Measured minus random weights, with sign; shown instead of the difference where the printed value is no measure."""
    if table.comparable:
        return ""
    return number(table.gain(result), places(table, result), sign=True)


def difference(table: Table, result: Result) -> str:
    """Measured minus printed, with sign and the printed decimals; "" if one of them is missing."""
    return number(result.difference, printed_places(table, table.unit(result.cell)), sign=True)


def read(table: Table, result: Result) -> str:
    """The number that the paper shows here without printing it; "" if there is none."""
    return number(result.cell.read, printed_places(table, table.unit(result.cell)))


def markdown(table: Table) -> str:
    header, lines = _grid(table)

    def line(words: list[str]) -> str:
        return "| " + " | ".join(" ".join(word.replace("|", "\\|").split()) for word in words) + " |\n"

    text = f"### {table.experiment.title}\n\n{subtitle(table)}\n\n"
    text += line(header) + line([":--", *["--:"] * (len(header) - 1)]) + "".join(map(line, lines))
    text += "".join(f"\n{' '.join(note.split())}\n" for note in notes(table))
    claims = [f"- **{checked.outcome}**: {claim_line(checked)}\n" for checked in verdicts.check_claims(table)]
    return text + (f"\n{count_line([table])}:\n\n{''.join(claims)}" if claims else "")


def count_line(shown: Iterable[Table]) -> str:
    """`40 claims checked: 3 holds, 37 not run`."""
    tally = verdicts.tally(shown)
    each = ", ".join(f"{count} {outcome}" for outcome, count in tally.items() if count)
    total = sum(tally.values())
    return f"{total} claim{'' if total == 1 else 's'} checked: {each}"


def escape(text: str) -> str:
    """LaTeX that prints `text`. A character without a glyph in pdfLaTeX becomes a question mark, so that the file compiles."""
    return "".join(_LATEX.get(mark, mark if " " <= mark < "\u0100" else "?") for mark in text)


def latex(table: Table) -> str:
    """A complete document: booktabs, the paper's layout, notes below. The template is table.tex.j2."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters["tex"] = escape
    header, lines = _grid(table)
    return environment.get_template("table.tex.j2").render(
        table=table,
        subtitle=subtitle(table),
        header=header,
        lines=lines,
        notes=notes(table),
        claims=verdicts.check_claims(table),
        claim_line=claim_line,
    )
