"""Settings of other programs: every mistake is reported with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidqa.common.foreign_files import JsonSettings, read_settings
from vidqa.errors import BundleError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"[1]", "must contain a JSON object, got list"),
        (b"null", "must contain a JSON object, got NoneType"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' appears twice"),
        (b'{"a": [1, {"b": NaN}]}', r"a\[1\]\.b: must be a finite number, got nan"),
        (b'{"a": {"b": -Infinity}}', r"a\.b: must be a finite number, got -inf"),
        (b'{"a": 1e999}', "a: must be a finite number, got inf"),
        (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"a": 1', "cannot be read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_files_that_are_no_settings(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"config\.json.*{message}"):
        read_settings(file)
    with pytest.raises(BundleError, match=r"none\.json cannot be read"):
        read_settings(tmp_path / "none.json")


def test_numbers(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    found = JsonSettings({"two": 2.0, "one": 1, "half": 0.5, "s": "2", "yes": True, "null": None, "big": 10**400}, file)
    assert found.whole("two", 0) == 2 and type(found.whole("two", 0)) is int and found.whole("missing", 7) == 7
    assert found.number("one", 0.0) == 1.0 and type(found.number("one", 0.0)) is float
    for key in ("half", "s", "yes", "null", "big"):
        with pytest.raises(BundleError, match=rf"x\.json: {key}: must be a whole number of at "):
            found.whole(key, 1)
    for key in ("s", "yes", "null", "big"):
        with pytest.raises(BundleError, match=rf"x\.json: {key}: must be a number of at least 0, got "):
            found.number(key, 1.0)
    with pytest.raises(BundleError, match=r"at least 3, got 2\.0"):
        found.whole("two", 0, 3)


def test_sections_and_texts(tmp_path: Path) -> None:
    found = JsonSettings({"a": {"b": {"c": "x", "d": 1}}, "null": None, "list": []}, tmp_path / "x.json")
    inner = found.section("a")
    assert inner is not None and found.section("null") is None and found.section("missing") is None
    deepest = inner.section("b")
    assert deepest is not None and deepest.text("c", "", ("x", "y")) == "x" and deepest.flag("missing", True)
    for act in (lambda: deepest.whole("c", 1), lambda: deepest.text("c", "", ("y",)), lambda: deepest.flag("c")):
        with pytest.raises(BundleError, match=r"x\.json: a\.b\.c: "):
            act()
    with pytest.raises(BundleError, match=r"a\.b\.d: must be a string"):
        deepest.text("d", "")
    with pytest.raises(BundleError, match="list: must be an object"):
        found.section("list")
