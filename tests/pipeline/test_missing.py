"""What counts as gone: only what the system says is not there, and never a disk that is not mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidqa.pipeline.run.pruning import vanished


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for name in ("2023/a.mp4", "2024/b.mp4", "2024/deep/c.mp4"):
        (tmp_path / "archive" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "archive" / name).write_text("film")
    return tmp_path / "archive"


def test_files_and_folders_that_are_gone(archive):
    gone = vanished([str(archive)])
    assert gone(str(archive / "2023" / "x" / "y.mp4")), "its folder is gone too, and there are others"
    assert gone(str(archive / "2024" / "x.mp4"))
    assert not gone(str(archive / "2024" / "b.mp4"))
    assert gone(str(archive / "2023" / "a.mp4" / "below a file.mp4"))


def test_an_empty_folder_may_be_a_disk_that_is_not_mounted(archive):
    (archive / "2023" / "a.mp4").unlink()
    gone = vanished([str(archive)])
    assert not gone(str(archive / "2023" / "a.mp4")) and not gone(str(archive / "2023" / "more" / "z.mp4"))
    (archive / "2023").rmdir()
    assert gone(str(archive / "2023" / "a.mp4")), "without the folder it is plain"


def test_what_was_not_searched_stays(archive, tmp_path):
    gone = vanished([str(archive / "2024"), str(archive / "named.mp4")])
    assert not gone(str(archive / "2023" / "x.mp4")) and not gone(str(archive / "2024x" / "x.mp4"))
    assert gone(str(archive / "named.mp4")) and gone(str(archive / "2024" / "x.mp4"))
    assert not vanished([str(tmp_path / "not there")])(str(tmp_path / "not there" / "x.mp4")) or os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "gone_ones", "others"),
    [
        ("*/*.mp4", ["2024/x.mp4"], ["2024/x.mkv", "2024/deep/x.mp4", "x.mp4"]),
        ("**/*.mp4", ["2024/x.mp4", "2024/deep/x.mp4", "x.mp4"], ["2024/x.mkv"]),
        ("202?", ["2024/x.mp4", "2024/deep/x.mkv"], ["x.mp4", "203/x.mp4"]),
        ("[2]024/**", ["2024/x.mp4", "2024/deep/x.mp4"], ["2023/x.mp4"]),
    ],
)
def test_what_a_glob_searched(archive, pattern, gone_ones, others):
    """What it would have found, and no other file that lies there."""
    gone = vanished([str(archive / pattern)])
    assert [name for name in (*gone_ones, *others) if gone(str(archive / name))] == gone_ones
    assert not gone(str(archive / "2024" / "b.mp4")) and not gone(str(archive.parent / "x.mp4"))


def test_a_name_that_looks_like_a_glob_is_a_name(archive):
    (archive / "20[24]").mkdir()
    (archive / "20[24]" / "a.mp4").write_text("film")
    gone = vanished([str(archive / "20[24]")])
    assert gone(str(archive / "20[24]" / "x.mp4")) and not gone(str(archive / "202" / "x.mp4"))


def test_a_link_that_leads_nowhere_is_there(archive):
    (archive / "2024" / "link.mp4").symlink_to(archive / "nowhere")
    assert not vanished([str(archive)])(str(archive / "2024" / "link.mp4"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="changes the user, which only root may")
def test_a_folder_that_may_not_be_read_proves_nothing(archive):
    (archive / "2024").chmod(0o700)
    gone, place = vanished([str(archive)]), str(archive / "2024" / "x.mp4")
    assert gone(place)
    os.seteuid(65534)
    try:
        assert not gone(place)
    finally:
        os.seteuid(0)
