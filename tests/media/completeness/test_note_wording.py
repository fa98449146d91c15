"""Wording of the notes: it is stored in tables, so it must not change by accident."""

from __future__ import annotations

import pytest

from vidqa.media.completeness.note_wording import clock_jumps, damaged, truncated


def test_truncated_and_damaged() -> None:
    assert truncated(5.24, 20.0) == "truncated: 5.2 of 20.0 s readable"
    assert truncated(5.24, None) == "truncated: 5.2 s readable"
    assert damaged(7.96, 20.0) == "damaged: 8.0 of 20.0 s unreadable"
    assert damaged(0.04, 20.0) == "damaged: 0.040 of 20.0 s unreadable"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (95_441.0, "26 h"),
        (-95_441.0, "26 h"),
        (3600.0, "1 h"),
        (3599.96, "1 h"),
        (300.0, "5 min"),
        (9.96, "10 s"),
        (1.02, "1 s"),
        (5 * 86_400.0, "5 d"),
        (9.2e9, "years"),
    ],
)
def test_clock_jumps(seconds: float, text: str) -> None:
    assert clock_jumps(seconds) == f"clock jumps by {text}"
