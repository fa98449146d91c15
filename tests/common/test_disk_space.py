"""Free bytes of a disk, and which errors mean a full one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vidqa.common.disk_space import free_disk_bytes, is_disk_full


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
