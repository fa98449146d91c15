"""Columns for a terminal: widths of wide characters, wrapping, and text that would disturb the terminal."""

from __future__ import annotations

import pytest

from vidqa.common.display import display_text
from vidqa.common.text_layout import columns_of_text, cut_text, text_width, wrap_text


def test_wide_and_combining_characters() -> None:
    assert text_width("abc") == 3
    assert text_width("緑の円") == 6
    assert text_width("e\u0301") == 1
    assert text_width("") == 0


def test_a_cut_text_fits_and_ends_with_an_ellipsis() -> None:
    assert cut_text("abc", 3) == "abc"
    assert cut_text("abcd", 3) == "ab…"
    assert cut_text("緑の円が", 6) == "緑の…"
    assert all(text_width(cut_text("緑a" * 9, width)) <= width for width in range(1, 30))


def test_text_is_wrapped_at_spaces_and_loses_nothing() -> None:
    assert wrap_text("a red circle moves", 8) == ["a red", "circle", "moves"]
    assert wrap_text("a red circle moves", 8, 2) == ["a red", "circle…"]
    long = "緑の円" * 20
    assert "".join(wrap_text(long, 7)) == long
    assert all(text_width(line) <= 7 for line in wrap_text(long, 7))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_columns_fit_and_are_aligned(width: int) -> None:
    rows = [
        ["1", "clip.mp4", "A large green square appears. " * 20],
        ["2", "長い名前の" * 12, "緑の円" * 100],
        ["3", "x" * 90, "y" * 5000],
        ["4", "", ""],
    ]
    lines = columns_of_text(["row", "path", "answer"], rows, width).splitlines()
    assert all(text_width(line) <= width for line in lines)
    assert len(lines) == 1 + 3 * 3 + 1
    assert lines[0].split() == ["row", "path", "answer"]


def test_text_that_would_disturb_the_terminal_is_escaped() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07 [bold]a[/bold]\r\nb\tc\u202e\u2066\x85\x9b1mz"
    text = columns_of_text(["answer"], [[hostile]], None)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.count("\n") == 2 and "[bold]a[/bold] b c" in text and "\\x1b[2J" in text and "\\u202e" in text


def test_joiners_and_wide_spaces_stay_readable() -> None:
    assert display_text("a\u200cb\u200dc") == "a\u200cb\u200dc"
    assert display_text("緑の\u3000円\u00a0x") == "緑の 円 x"
