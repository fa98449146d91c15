"""Outputs are created in existing folders only."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidqa.common.output_paths import check_output_parent
from vidqa.errors import UsageError


def test_the_folder_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link.csv").symlink_to("gone/t.csv")
    for path in ("t.csv", "new_folder/", tmp_path / "t.csv", tmp_path / "file"):
        check_output_parent(path)
    for path, what in (
        ("gone/t.csv", "does not exist"),
        ("link.csv", "does not exist"),
        ("file/t.csv", "not a folder"),
    ):
        with pytest.raises(UsageError, match=what) as caught:
            check_output_parent(path, "--log")
        assert caught.value.what.startswith(f"--log {path}: ")
    assert not (tmp_path / "gone").exists()
