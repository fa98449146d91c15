"""Files and folders that appear under their name only when they are complete, and digests of files.

A folder is filled under a hidden temporary name next to its target and renamed at the end. Meanwhile the process holds
a lock on it. The operating system releases that lock when the process dies, so an unlocked temporary folder was left by
a killed process. Where folders cannot be locked (Windows, some network file systems), leftovers are not removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from vidqa.common.display import display_path
from vidqa.errors import LockedError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
#: What `tempfile.mkdtemp` puts between prefix and suffix.
_RANDOM = "[a-z0-9_]{8}"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file through a temporary sibling, which is renamed to `path` only if the block succeeds.

    The data is flushed to disk before the rename, and the rename before the `with` statement ends. After a crash the
    file is either the old one or the new one, never a mixture. It keeps the permissions of the file it replaces.

    Args:
        path: the file to create or replace; its folder must exist.

    Yields:
        The temporary file, open for writing.
    """
    path = Path(path)
    # 50 characters are at most 200 bytes in UTF-8, so the whole name stays below the 255 bytes that file systems allow.
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}.part")
    # 0o666 rather than tempfile's 0o600: the user's umask decides, as for every other file.
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace_file(part: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Rename a file that is already flushed to disk, keeping the permissions of the file it replaces.

    The rename itself is on disk when this returns.

    Args:
        part: the complete file under its temporary name.
        path: its final name.
    """
    part, path = Path(part), Path(path)
    # The file belongs to another user, or the file system has no permissions: rename it anyway.
    with suppress(FileNotFoundError, PermissionError):
        os.chmod(part, stat.S_IMODE(path.stat().st_mode))
    os.replace(part, path)
    fsync_folder(path.parent)
    if part.parent != path.parent:
        fsync_folder(part.parent)


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames inside `folder` survive a power failure. Does nothing where folders cannot be opened (Windows)."""
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


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file's content in hex."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK_BYTES):
            h.update(chunk)
    return h.hexdigest()


def current_umask() -> int:
    """Return the permissions that new files of this process do not get. Not safe while other threads create files."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Create a locked, hidden folder next to `target` for the caller to fill and rename.

    Args:
        target: the final folder; its parent must exist.

    Yields:
        The new, empty folder. If it still has its temporary name when the block ends, it is removed.
    """
    part, lock = _locked_folder(target)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_leftovers(target: Path, suffix: str = ".part") -> None:
    """Remove temporary folders that killed processes left next to `target`; each is logged as a warning.

    Args:
        target: the folder that those processes were writing.
        suffix: ending of the temporary names.

    Raises:
        LockedError: a running process is writing the same target.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{_RANDOM}{re.escape(suffix)}")
    found: list[Path] = []
    with suppress(OSError):  # the parent does not exist yet, or cannot be listed
        found = sorted(p for p in target.parent.iterdir() if pattern.fullmatch(p.name) and not p.is_symlink())
    for folder in found:
        try:
            lock = _lock_folder(folder)
        except BlockingIOError as e:
            what = f"{display_path(str(target))} is being written by another process, in {display_path(folder.name)}"
            raise LockedError(what, hint="wait for it to end, or choose another --out") from e
        except OSError:  # not a folder, or owned by another user
            continue
        if lock is None:
            continue
        try:
            n_bytes = sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file())
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
        if not folder.exists():
            log.warning("removed %s (%.1f GB), left by a killed process", display_path(str(folder)), n_bytes / 1e9)


def _locked_folder(target: Path) -> tuple[Path, int | None]:
    """Return an empty folder and the descriptor that holds its lock; None where folders cannot be locked."""
    for _ in range(100):
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            lock = _lock_folder(part)
        except (BlockingIOError, FileNotFoundError):  # another process took it for a leftover before it was locked
            continue
        except OSError:  # a file system without locks
            return part, None
        if part.is_dir():
            return part, lock
        if lock is not None:
            os.close(lock)
    raise LockedError(f"{display_path(str(target))}: other processes keep removing the temporary folder next to it")


def _lock_folder(folder: Path) -> int | None:
    """Return a descriptor that locks a folder until it is closed; None on Windows, where folders cannot be locked.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the folder cannot be opened, or its file system has no locks.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not lock_descriptor(handle, blocking=False):
            raise BlockingIOError(f"{folder} is locked")
    except OSError:
        os.close(handle)
        raise
    return handle
