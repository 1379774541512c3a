"""How figures look: colours, style sheet, file formats, and SVG prepared for the page."""

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
def style() -> Iterator[None]:
    inks = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.style.context(["default", STYLE, inks]):
        yield


def save(figure: Figure, kind: str) -> bytes:
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
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))  # ids that nothing uses are the same in every figure
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = text.replace("'DejaVu Sans'", "inherit").replace("font-family: inherit", "font-family: var(--font)")
    for colour, name in _PAGE_COLOURS.items():
        text = text.replace(colour, name)
    return text
