"""Free bytes of a disk, errors that mean that a disk is full, and what to do about them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vidqa.common.display import display_path
from vidqa.errors import VidqaError

#: How Rust libraries (polars, safetensors) report the errno of an error.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Messages of libraries whose exceptions carry no errno, such as torch's file writer.
_DISK_FULL_TEXTS = ("no space left", "file too large", "quota", "pytorchstreamwriter failed")


def free_disk_bytes(folder: str | os.PathLike[str]) -> int:
    """Return the free bytes of the disk that holds `folder`, which need not exist yet; huge if it is unknown."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else sys.maxsize  # some network file systems report no size at all


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means a full disk, an exceeded quota or a file size limit."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return True
    text = str(error).lower()
    return any(part in text for part in _DISK_FULL_TEXTS)


def write_remedy(error: BaseException, folder: str | os.PathLike[str]) -> str:
    """Return what to try after a file in `folder` could not be written."""
    name = display_path(os.fspath(folder))
    if (isinstance(error, OSError) and error.errno == errno.EFBIG) or "file too large" in str(error).lower():
        return f"raise the limit on file sizes (`ulimit -f`, or that of the file system of {name})"
    return f"free space in {name}" if is_disk_full(error) else f"make {name} writable"


@contextmanager
def disk_full_as(new_error: Callable[[Exception], VidqaError]) -> Iterator[None]:
    """Turn a full disk inside the block into an error of vidqa. Errors of vidqa pass unchanged.

    Args:
        new_error: returns the error to raise for that of a library; each reports a full disk in a type of its own.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, VidqaError) or not is_disk_full(error):
            raise
        raise new_error(error) from error


@contextmanager
def os_errors(f: BinaryIO, kind: type[Exception]) -> Iterator[None]:
    """Turn the error of a library that cannot write a file into the OSError that caused it.

    Some messages do not contain the reason ("Invalid thrift: transport error"). The operating system is then asked
    again, by writing more bytes.

    Args:
        f: the file that the block writes; it is useless after an error.
        kind: of the library's errors.

    Raises:
        OSError: the disk is full, a quota or limit is exceeded, or the disk failed.
    """
    try:
        yield
    except (kind, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if match := _OS_ERROR.search(str(error)):
            number = int(match[1])
            raise OSError(number, os.strerror(number)) from error
        _fill(f.fileno(), 1 << 20)
        raise


def write_failure(folder: str | os.PathLike[str], n_bytes: int) -> OSError | None:
    """Return the error of writing a temporary file, for libraries that do not report it; None if it works.

    Args:
        folder: an existing folder.
        n_bytes: size of the file.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as f:
            _fill(f.fileno(), n_bytes)
    except OSError as error:
        return error
    return None


def _fill(descriptor: int, n_bytes: int) -> None:
    for _ in range(0, n_bytes, 4096):  # a disk that is almost full accepts a part of a large write
        os.write(descriptor, bytes(4096))
    os.fsync(descriptor)
