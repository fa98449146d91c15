"""File names of any bytes are stored as valid text and restored exactly."""

from __future__ import annotations

import os
import string

from hypothesis import given
from hypothesis import strategies as st

from vidqa.common.path_text import escape_path, unescape_path


@given(st.binary(max_size=40).map(os.fsdecode) | st.text(string.printable + "\\xe9\udc80\udfff\ud83d", max_size=20))
def test_names_of_any_bytes_are_restored(name: str) -> None:
    text = escape_path(name)
    text.encode("utf-8")
    assert unescape_path(text) == name


def test_ordinary_names_are_not_escaped() -> None:
    for name in ("a b.mp4", "C:\\videos\\a.mp4", "\u043a\u0438\u043d\u043e.mp4"):
        assert escape_path(name) == name
    assert escape_path(os.fsdecode(b"caf\xe9.mp4")) == "caf\\xe9.mp4"
