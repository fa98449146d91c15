"""One run at a time for one table: a lock file beside it, held by the operating system.

The lock dies with its process, so a killed run leaves nothing to clean up; the file stays and says who was last.
Does not know what the table holds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from vidqa.errors import LockedError

#: Locks that this process holds. The system's locks belong to a process and would let its second thread through.
_HELD: set[str] = set()


@contextmanager
def only_run(table: Path) -> Iterator[None]:
    """Hold the lock of `table` while the block runs.

    Raises:
        LockedError: another process, or another run in this one, holds it.
        OSError: the lock file cannot be made.
    """
    path = table.with_name(f".{table.name}.lock")
    name = os.path.realpath(path)
    if name in _HELD:
        raise LockedError(f"{table} is being written by another run in this process")
    with open(path, "a+", encoding="utf-8") as handle:
        if not _take(handle) or not _still_there(handle, path):
            raise LockedError(f"{table} is being written by another run ({_owner(path)})", hint="wait for it to end")
        _HELD.add(name)
        try:
            handle.truncate(0)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            handle.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": now}))
            handle.flush()
            yield
        finally:
            _HELD.discard(name)
            # Removed while still held: whoever opened it before that sees in `_still_there` that it is gone.
            with suppress(OSError):  # Windows does not remove an open file; then it stays, unlocked
                path.unlink()


def _take(handle: IO[str]) -> bool:
    """Try to lock without waiting. True when held, and when the file system has no locks at all."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    # lockf and not flock: a lock of flock is inherited by forked decode workers and would outlive a killed run.
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _still_there(handle: IO[str], path: Path) -> bool:
    """False when the holder before us removed the file between our opening and our locking it."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    """What the lock file says about its holder, for the message only."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['start']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "holder unknown"
