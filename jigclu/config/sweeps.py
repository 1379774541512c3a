"""Learning rates that are tried side by side."""

from __future__ import annotations

from collections.abc import Collection


def edge_of_sweep(rate: float, rates: Collection[float]) -> str:
    """`lowest` or `highest` if the rate is that of several: a better one may lie outside; "" otherwise."""
    if len(set(rates)) < 2:
        return ""
    return {min(rates): "lowest", max(rates): "highest"}.get(rate, "")
