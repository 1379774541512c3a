"""Style of the figures: colours, style sheet, file formats, and SVG prepared for the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

KINDS = ("png", "pdf", "svg")
WIDTH = 4.7  # inches: two fit side by side on the page, and one is readable on a phone without zooming
STYLE = Path(__file__).with_name("style.mplstyle")
# Okabe and Ito's blue against a grey: they differ in hue and in lightness, for all colour vision and in print.
MEASURED, PRINTED, INK, FAINT = "#0072b2", "#9a9fa6", "#1b1f24", "#c9cdd2"
_PAGE_COLOURS = {MEASURED: "var(--measured)", PRINTED: "var(--printed)", INK: "currentColor", FAINT: "var(--line)"}
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
}


@contextmanager
def style() -> Iterator[None]:
    """The figures' style sheet, while drawing."""
    inks = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.style.context(["default", STYLE, inks]):
        yield


def save(figure: Figure, kind: str) -> bytes:
    """The figure as a file of that kind; same figure, same bytes."""
    file = io.BytesIO()
    transparent = kind == "svg"  # it is shown on the page's background
    figure.savefig(
        file, format=kind, metadata=_METADATA[kind], transparent=transparent, bbox_inches="tight", pad_inches=0.05
    )
    return file.getvalue()


def for_page(svg: bytes) -> str:
    """An SVG for embedding in the page: no XML prologue, the page's colours and font, scaled to its column."""
    text = svg.decode()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r'<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r'<svg \1style="max-width:\2pt"', text, count=1)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))  # unused ids repeat in every figure
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = text.replace("'DejaVu Sans'", "inherit").replace("font-family: inherit", "font-family: var(--font)")
    for colour, name in _PAGE_COLOURS.items():
        text = text.replace(colour, name)
    return text
