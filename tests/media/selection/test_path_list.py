"""Lists of paths: separators, encodings, and what is not special in them."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from vidqa.errors import UsageError
from vidqa.media.selection.path_list import read_path_list


@pytest.mark.parametrize(
    ("content", "null", "paths"),
    [
        (b"a.mp4\nb/c.mp4\n", False, ["a.mp4", "b/c.mp4"]),
        (b"a.mp4\r\nb.mp4", False, ["a.mp4", "b.mp4"]),
        (b"\n\na.mp4\n\r\n\n", False, ["a.mp4"]),
        (b'# a.mp4\n a b \n*.mp4\n"q"\n', False, ["# a.mp4", " a b ", "*.mp4", '"q"']),
        (b"\xef\xbb\xbfa.mp4\n", False, ["a.mp4"]),
        (b"bad\xff.mp4\n", False, [os.fsdecode(b"bad\xff.mp4")]),
        (b"line\nbreak.mp4\0cr\r\0\0a.mp4", True, ["line\nbreak.mp4", "cr\r", "a.mp4"]),
        (b"", False, []),
        (b"", True, []),
    ],
)
def test_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, null: bool, paths: list[str]) -> None:
    (tmp_path / "list").write_bytes(content)
    assert read_path_list(str(tmp_path / "list"), null=null) == paths
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_path_list("-", null=null) == paths


def test_null_bytes_need_the_option(tmp_path: Path) -> None:
    for content in (b"a.mp4\nb.mp4\0c.mp4\0", "x\na.mp4\n".encode("utf-16")):
        (tmp_path / "list").write_bytes(content)
        with pytest.raises(UsageError, match=r"list: line [12] has a null byte") as caught:
            read_path_list(str(tmp_path / "list"))
        assert "-0" in str(caught.value)


@pytest.mark.parametrize("name", ["absent", ".", "nul\0byte"])
def test_lists_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--files-from "):
        read_path_list(f"{tmp_path}/{name}")
