"""Durations as people see them."""

from __future__ import annotations

import pytest

from jigclu.job_folder import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (5, "5 s"),
        (59.6, "1 min 00 s"),
        (115, "1 min 55 s"),
        (3599.7, "1 h 00 min"),
        (2 * 3600 + 5 * 60 + 29, "2 h 05 min"),
        (24 * 3600 - 10, "1 d 0 h"),
        (3 * 86400 + 4 * 3600 + 20 * 60, "3 d 4 h"),
    ],
)
def test_a_duration_is_written_with_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
