"""Free bytes of a disk, and errors that mean that a disk is full."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Messages of libraries whose exceptions carry no errno, such as torch's file writer.
_DISK_FULL_TEXTS = ("no space left", "file too large", "quota", "pytorchstreamwriter failed")


def free_disk_bytes(folder: str | os.PathLike[str]) -> int:
    """Return the free bytes of the disk that holds `folder`, which need not exist yet."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means a full disk, an exceeded quota or a file size limit."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return True
    text = str(error).lower()
    return any(part in text for part in _DISK_FULL_TEXTS)
