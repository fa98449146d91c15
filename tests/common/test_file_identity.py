"""Whether paths lead to the same file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vidqa.common.file_identity import absolute_path, is_same_file


def test_links_and_spellings_lead_to_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("a")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").symlink_to("link/a")
    a = str(tmp_path / "real" / "a")
    assert all(is_same_file(a, str(tmp_path / other)) for other in ("link/a", "file", "real/../link/./a"))
    (tmp_path / "copy").write_text("a")
    assert not is_same_file(a, str(tmp_path / "copy")) and not is_same_file(a, str(tmp_path / "gone"))
    assert not is_same_file(str(tmp_path / "gone"), str(tmp_path / "gone"))


def test_hard_links_are_different_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "link").symlink_to("a")
    assert not is_same_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert is_same_file(str(tmp_path / "a"), str(tmp_path / "link"))


def test_the_same_folder_mounted_twice(tmp_path: Path, mount: Callable[..., None]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "a").write_text("a")
    mount("--bind", str(tmp_path / "one"), str(tmp_path / "two"))
    try:
        assert is_same_file(str(tmp_path / "one" / "a"), str(tmp_path / "two" / "a"))
    finally:
        subprocess.run(["umount", str(tmp_path / "two")], check=True)


def test_absolute_paths_keep_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/inner")
    monkeypatch.chdir(tmp_path)
    assert absolute_path("link/") == str(tmp_path / "link")
    assert absolute_path("real/inner/../x") == str(tmp_path / "real" / "x")
    assert absolute_path("link/../x") == str(tmp_path / "real" / "x"), "as the system resolves it"
    assert absolute_path("gone/../x") == str(tmp_path / "x")
