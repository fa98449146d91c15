"""One run at a time for one table: a lock file beside it, which says host, process and start of the holder.

The operating system holds the lock, so it dies with its process, and a recycled process number fools nobody; what a
killed run leaves is a file without a lock, which the next run takes over and can say so. On a network file system
without locks two hosts would not see each other.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from vidqa.common.path_text import visible
from vidqa.errors import LockedError, TableError

# The system's locks belong to a process and would let its second thread through.
_held: set[str] = set()
_guard = threading.Lock()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, or held it when it died."""

    host: str
    pid: int
    start: str  # ISO 8601, UTC

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.start}"


class FileLock:
    """The lock of a table, for use with `with`.

    `taken_over` tells, once the lock is held, whose lock was found lying there after its process had died.

    Args:
        table: path of the table; need not exist yet.
    """

    def __init__(self, table: str | os.PathLike[str]) -> None:
        self.table = Path(os.path.realpath(table))
        self.path = self.table.with_name(f".{self.table.name}.lock")
        self.taken_over: Holder | None = None
        self._file: IO[str] | None = None

    def __enter__(self) -> FileLock:
        """Take the lock.

        Raises:
            LockedError: another run holds it; says which.
            TableError: the lock file cannot be made.
        """
        with _guard:
            if str(self.path) in _held:
                raise self._refusal("this process")
            self._file = self._taken()
            _held.add(str(self.path))
        self.taken_over = _read_holder(self._file)
        me = Holder(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
        self._file.truncate(0)
        self._file.write(json.dumps(asdict(me)) + "\n")
        self._file.flush()
        return self

    def __exit__(self, *unused: object) -> None:
        """Let go. The file is removed while still locked: who opened it before that sees that it is gone."""
        if self._file is None:
            return
        with suppress(OSError):  # Windows does not remove an open file: it stays, unlocked and empty
            self._file.truncate(0)
            self.path.unlink()
        with _guard:
            self._file.close()
            _held.discard(str(self.path))
        self._file = None

    def _taken(self) -> IO[str]:
        for _ in range(100):
            try:
                # Appending: opening must not wipe out what the holder wrote.
                f = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - lives as long as the lock
            except OSError as error:
                what = f"{visible(str(self.path))}: the lock cannot be made: {error.strerror or error}"
                raise TableError(what, hint=f"the rights to write {visible(str(self.path.parent))}") from error
            if not _lock(f):
                holder = _read_holder(f)
                f.close()
                raise self._refusal(str(holder) if holder else "another run")
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(f.fileno()), os.stat(self.path)):
                    return f
            f.close()  # its holder removed it between our opening and our locking: the next round makes a new one
        raise self._refusal("runs that come and go")

    def _refusal(self, holder: str) -> LockedError:
        what = f"{visible(str(self.table))} is being written by {holder}"
        return LockedError(what, hint="wait for it to end, or write to another table with --out")


def _lock(f: IO[str]) -> bool:
    """Try to lock without waiting. True when held."""
    if sys.platform == "win32":
        import msvcrt

        try:
            f.seek(1 << 20)  # far behind the text, which others want to read
            msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    # lockf and not flock: forked decode workers would inherit a lock of flock and could outlive a killed run.
    try:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks: better unlocked than no table at all
    return True


def _read_holder(f: IO[str]) -> Holder | None:
    try:
        f.seek(0)
        return Holder(**json.loads(f.read()))
    except (OSError, ValueError, TypeError):
        return None
