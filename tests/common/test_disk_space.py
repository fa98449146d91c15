"""Free bytes of a disk, and which errors mean a full one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from vidqa.common.disk_space import free_disk_bytes, is_disk_full, os_errors, write_failure, write_remedy


def test_free_bytes_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path / "a" / "b") == pytest.approx(free_disk_bytes(tmp_path), abs=1 << 30)
    assert free_disk_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        OSError(errno.EFBIG, "x"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3"),
        RuntimeError("write failed: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognized(error: Exception) -> None:
    assert is_disk_full(error)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), RuntimeError("CUDA out of memory"), ValueError()])
def test_other_errors_are_not_a_full_disk(error: Exception) -> None:
    assert not is_disk_full(error)


class LibraryError(Exception):
    """An error of a library that writes files."""


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[BinaryIO]:
    """A file that cannot become larger than 100 kB."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "file").open("wb", buffering=0) as f:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        yield f
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("error", [LibraryError("transport error"), OSError("transport error")])
def test_the_operating_system_is_asked_for_the_reason(limited: BinaryIO, error: Exception) -> None:
    with pytest.raises(OSError, match="File too large") as caught, os_errors(limited, LibraryError):
        raise error
    assert caught.value.errno == errno.EFBIG and "ulimit -f" in write_remedy(caught.value, "/data")


def test_a_reason_in_the_message_is_used(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as f:
        with pytest.raises(OSError, match="Disk quota exceeded") as caught, os_errors(f, LibraryError):
            raise LibraryError(f"I/O error: x (os error {errno.EDQUOT})")
        assert caught.value.errno == errno.EDQUOT and write_remedy(caught.value, "/data") == "free space in /data"
        with pytest.raises(PermissionError) as denied, os_errors(f, LibraryError):
            raise PermissionError(errno.EACCES, "denied")
        assert write_remedy(denied.value, "/data") == "make /data writable"


def test_other_errors_of_the_library_are_raised_as_they_are(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as f, pytest.raises(LibraryError, match="a bug"), os_errors(f, LibraryError):
        raise LibraryError("a bug")


def test_a_file_system_that_reports_no_size_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=0))
    assert free_disk_bytes(tmp_path) > 1 << 60


def test_writing_is_tried_for_libraries_that_report_no_reason(tmp_path: Path) -> None:
    assert write_failure(tmp_path, 10_000) is None and not list(tmp_path.iterdir())
    failure = write_failure(tmp_path / "missing", 1)
    assert isinstance(failure, FileNotFoundError)
