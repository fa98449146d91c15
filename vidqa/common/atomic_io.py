"""Files that are whole or absent, and digests of their content."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 20


@contextmanager
def commit(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary sibling of `path`; it takes the name only if the block succeeds.

    The data reach the disk before the rename, and the rename before the block is left, so that after a crash the file
    is the old one or the new one, never a part. A file that is replaced passes its permissions on.
    """
    path = Path(path)
    # 50 characters are at most 200 bytes: with the rest below the 255 that file systems allow.
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}.part")
    # 0o666 and not tempfile's 0o600: the umask of the user decides, as for every other file.
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        take_name(part, path)
    finally:
        part.unlink(missing_ok=True)


def take_name(part: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Rename a file whose data are on the disk; it takes over the permissions of the one that it replaces.

    The rename is on the disk when this returns; before, `path` is the old file or the new one.
    """
    part, path = Path(part), Path(path)
    # A file that may be written but belongs to somebody else, or a file system without permissions: the rename counts.
    with suppress(FileNotFoundError, PermissionError):
        os.chmod(part, stat.S_IMODE(path.stat().st_mode))
    os.replace(part, path)
    sync_folder(path.parent)
    if part.parent != path.parent:
        sync_folder(part.parent)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames inside `folder` survive a power cut. Silently skipped where folders cannot be opened (Windows)."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems refuse; the rename itself is still atomic
    finally:
        os.close(fd)


def digest_file(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's content, hex."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            h.update(chunk)
    return h.hexdigest()
