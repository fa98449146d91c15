"""Values as text for people."""

from __future__ import annotations

import os

import pytest

from vidqa.common.display import counts, display_path, human_bytes, human_duration, plural


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000_000, "1.5 GB"), (7e15, "7000.0 TB"), (12.4, "12 B")],
)
def test_bytes(n_bytes: float, text: str) -> None:
    assert human_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (59.97, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (float("inf"), "unknown"),
        (float("nan"), "unknown"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_counts_have_separators_and_agree_in_number() -> None:
    assert (plural(1, "file"), plural(0, "file"), plural(5000, "file")) == ("1 file", "0 files", "5,000 files")
    assert counts({"ok": 3, "failed": 12, "empty": 3}) == "12 failed, 3 empty, 3 ok"


def test_paths_are_one_printable_line() -> None:
    assert display_path("a b/ü.mp4") == "a b/ü.mp4"
    assert display_path("line\nbreak\x1b[31m") == r"line\nbreak\x1b[31m"
    assert display_path(os.fsdecode(b"\xff.mp4")) == r"\xff.mp4"
