"""Kinds of errors and notes."""

from __future__ import annotations

import pytest

from vidqa.errors import NOTE_KINDS, note_kind


@pytest.mark.parametrize(
    ("note", "kind"),
    [
        ("truncated: 5.2 of 20.0 s readable", "truncated"),
        ("clock jumps by 26 h", "clock"),
        ("Clock jumps by 3 s", "clock"),
        ("clock jumps by years", "clock"),
        ("truncated: 3 of 8 frames readable", "truncated"),
        ("damaged: 0.5 of 20.0 s unreadable", "damaged"),
        ("1 of 3 pages", "pages"),
        ("truncated: 57% of the rows readable", "truncated"),
        ("1 of 2 views", "views"),
        ("1 of 4 images", "images"),
        ("something odd", "other"),
        ("", "other"),
    ],
)
def test_the_kind_of_a_note_does_not_depend_on_its_numbers(note: str, kind: str) -> None:
    assert note_kind(note) == kind and kind in NOTE_KINDS
