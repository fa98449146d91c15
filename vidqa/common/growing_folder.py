"""A folder that grows beside its target under a hidden name, and what a process that was killed has left of one.

The operating system holds a lock on a growing folder, so it dies with its process: a folder without one is a leftover.
Where folders cannot be locked (Windows, some network file systems) nothing is taken for a leftover.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidqa.common.display import display_path
from vidqa.errors import LockedError

log = logging.getLogger(__name__)

#: What `tempfile.mkdtemp` puts between prefix and suffix.
_RANDOM = "[a-z0-9_]{8}"


@contextmanager
def growing(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to be filled and renamed; what has not been renamed in the end is removed."""
    part, lock = _new(target)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_leftovers(target: Path, suffix: str = ".part") -> None:
    """Remove what killed processes have left beside `target`; a warning in the log names it.

    Raises:
        LockedError: a process that lives is writing the same target.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{_RANDOM}{re.escape(suffix)}")
    found: list[Path] = []
    with suppress(OSError):  # no such folder yet, or one that may not be listed
        found = sorted(p for p in target.parent.iterdir() if pattern.fullmatch(p.name) and not p.is_symlink())
    for folder in found:
        try:
            lock = _lock(folder)
        except BlockingIOError as e:
            what = f"{display_path(str(target))} is being written by another process, in {display_path(folder.name)}"
            raise LockedError(what, hint="wait for it to end, or another --out") from e
        except OSError:  # no folder, or somebody else's
            continue
        if lock is None:
            continue
        try:
            n_bytes = sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file())
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
        if not folder.exists():
            log.warning(
                "removed %s (%.1f GB), left by a process that was killed", display_path(str(folder)), n_bytes / 1e9
            )


def _new(target: Path) -> tuple[Path, int | None]:
    """An empty folder, and the descriptor that keeps its lock; None without locks."""
    for _ in range(100):
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            lock = _lock(part)
        except (BlockingIOError, FileNotFoundError):  # taken for a leftover between the two steps
            continue
        except OSError:  # a file system without locks
            return part, None
        if part.is_dir():
            return part, lock
        if lock is not None:
            os.close(lock)
    raise LockedError(f"{display_path(str(target))}: other processes remove what is written beside it")


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder until it is closed; None where the system has no such locks.

    Raises:
        BlockingIOError: another process has it.
        OSError: the folder cannot be opened, or its file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle
