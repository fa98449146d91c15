"""Which files count as removed: those that the file system does not have, and never those on an unmounted disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vidqa.cache.media_index import MediaIndex
from vidqa.pipeline.run.pruning import removed_files, replaced_files


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for name in ("2023/a.mp4", "2024/b.mp4", "2024/deep/c.mp4"):
        (tmp_path / "archive" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "archive" / name).write_text("video")
    return tmp_path / "archive"


def test_removed_files_and_folders(archive):
    is_removed = removed_files([str(archive)])
    assert is_removed(str(archive / "2023" / "x" / "y.mp4")), "its folder was removed, and there are others"
    assert is_removed(str(archive / "2024" / "x.mp4"))
    assert not is_removed(str(archive / "2024" / "b.mp4"))
    assert is_removed(str(archive / "2023" / "a.mp4" / "below a file.mp4"))


def test_an_empty_folder_may_be_an_unmounted_disk(archive):
    (archive / "2023" / "a.mp4").unlink()
    is_removed = removed_files([str(archive)])
    assert not is_removed(str(archive / "2023" / "a.mp4")) and not is_removed(str(archive / "2023" / "more" / "z.mp4"))
    (archive / "2023").rmdir()
    assert is_removed(str(archive / "2023" / "a.mp4")), "the folder was removed as well"


def test_files_that_were_not_searched_are_kept(archive, tmp_path):
    is_removed = removed_files([str(archive / "2024"), str(archive / "named.mp4")])
    assert not is_removed(str(archive / "2023" / "x.mp4")) and not is_removed(str(archive / "2024x" / "x.mp4"))
    assert is_removed(str(archive / "named.mp4")) and is_removed(str(archive / "2024" / "x.mp4"))
    assert not removed_files([str(tmp_path / "missing")])(str(tmp_path / "missing" / "x.mp4")) or os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "removed", "others"),
    [
        ("*/*.mp4", ["2024/x.mp4"], ["2024/x.mkv", "2024/deep/x.mp4", "x.mp4"]),
        ("**/*.mp4", ["2024/x.mp4", "2024/deep/x.mp4", "x.mp4"], ["2024/x.mkv"]),
        ("202?", ["2024/x.mp4", "2024/deep/x.mkv"], ["x.mp4", "203/x.mp4"]),
        ("[2]024/**", ["2024/x.mp4", "2024/deep/x.mp4"], ["2023/x.mp4"]),
    ],
)
def test_only_files_that_a_glob_matches_are_removed(archive, pattern, removed, others):
    """Other files in the same folders are kept."""
    is_removed = removed_files([str(archive / pattern)])
    assert [name for name in (*removed, *others) if is_removed(str(archive / name))] == removed
    assert not is_removed(str(archive / "2024" / "b.mp4")) and not is_removed(str(archive.parent / "x.mp4"))


def test_an_existing_name_with_glob_characters_is_a_name(archive):
    (archive / "20[24]").mkdir()
    (archive / "20[24]" / "a.mp4").write_text("video")
    is_removed = removed_files([str(archive / "20[24]")])
    assert is_removed(str(archive / "20[24]" / "x.mp4")) and not is_removed(str(archive / "202" / "x.mp4"))
    is_removed = removed_files([str(archive / "20[24]" / "*.mp4")])
    assert is_removed(str(archive / "20[24]" / "x.mp4")) and not is_removed(str(archive / "202" / "x.mp4"))


def test_a_dangling_link_exists(archive):
    (archive / "2024" / "link.mp4").symlink_to(archive / "nowhere")
    assert not removed_files([str(archive)])(str(archive / "2024" / "link.mp4"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="changes the user, which only root may")
def test_an_unreadable_folder_proves_nothing(archive):
    (archive / "2024").chmod(0o700)
    is_removed, path = removed_files([str(archive)]), str(archive / "2024" / "x.mp4")
    assert is_removed(path)
    os.seteuid(65534)
    try:
        assert not is_removed(path)
    finally:
        os.seteuid(0)


def test_files_with_other_content_are_replaced(archive, tmp_path):
    index, path = MediaIndex(tmp_path / "cache"), archive / "2024" / "b.mp4"
    is_replaced = replaced_files([str(archive / "2024")], index)
    media_id = hashlib.sha256(b"video").hexdigest()[:32]
    assert not is_replaced(media_id, str(path)) and is_replaced("0" * 32, str(path))
    path.write_text("the whole video")
    assert is_replaced(media_id, str(path))
    assert not is_replaced("0" * 32, str(archive / "2023" / "a.mp4")), "not searched"
    assert not is_replaced("0" * 32, str(archive / "2024" / "missing.mp4")), "removed, not replaced"
    path.unlink()
    path.mkdir()
    assert not is_replaced(media_id, str(path)), "what cannot be read proves nothing"
    index.close()
