"""One process at a time may write a table or a model: a lock file next to it that names the holder.

The operating system holds the lock and releases it when the process ends, so no process id is ever checked. A killed
run leaves an unlocked file; the next run takes it over and can report which process left it. On a network file system
without locks, a lock does not exclude processes on other hosts.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from vidqa.common.disk_space import write_remedy
from vidqa.common.path_text import escape_surrogates
from vidqa.errors import LockedError, TableError

#: Lock files that this process holds. A forked child inherits their descriptors and with them the lock, which would
#: outlive a killed parent; the child closes them right after the fork.
_open_files: set[IO[str]] = set()


def _close_in_child() -> None:
    while _open_files:
        with suppress(OSError):
            _open_files.pop().close()  # the parent keeps the lock: only its own unlock or exit releases it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@dataclass(frozen=True)
class LockHolder:
    """The process that holds a lock, or that held it when it was killed."""

    host: str
    pid: int
    start: str  # ISO 8601, UTC

    def __str__(self) -> str:
        """Return the holder as it appears in messages."""
        return f"process {self.pid} on {self.host}, started {self.start}"


class FileLock:
    """Exclusive lock on an output path, used as a context manager.

    Args:
        target: the table or folder to be written; it need not exist yet, but its parent must.

    Attributes:
        path: the lock file, `.NAME.lock` next to the target.
        stale_holder: set while the lock is held, if the lock file was left by a process that no longer runs.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.target = Path(os.path.realpath(target))
        self.path = self.target.with_name(f".{self.target.name}.lock")
        self.stale_holder: LockHolder | None = None
        self._file: IO[str] | None = None

    def __enter__(self) -> FileLock:
        """Take the lock without waiting.

        Raises:
            LockedError: another process, or this one, holds it.
            TableError: the lock file cannot be created.
        """
        self._file = self._acquire()
        _open_files.add(self._file)
        self.stale_holder = _read_holder(self._file)
        me = LockHolder(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
        with suppress(OSError):  # disk full: the lock holds all the same, but cannot name its holder
            self._file.truncate(0)
            os.write(self._file.fileno(), (json.dumps(asdict(me)) + "\n").encode())
        return self

    def __exit__(self, *unused: object) -> None:
        """Release the lock. The file is removed while still locked; `_acquire` checks for that."""
        if self._file is None:
            return
        with suppress(OSError):  # Windows does not remove an open file: it stays, unlocked and empty
            self._file.truncate(0)
            self.path.unlink()
        _open_files.discard(self._file)
        self._file.close()
        self._file = None

    def _acquire(self) -> IO[str]:
        for _ in range(100):
            try:
                # Append mode: opening must not erase what the holder wrote.
                f = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - stays open as long as the lock is held
            except OSError as error:
                what = f"{escape_surrogates(str(self.path))}: cannot create the lock file: {error.strerror or error}"
                hint = f"{write_remedy(error, self.path.parent)}, or use another --out"
                raise TableError(what, hint=hint) from error
            if not _try_lock(f):
                holder = _read_holder(f)
                f.close()
                raise self._refusal(str(holder) if holder else "another run")
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(f.fileno()), os.stat(self.path)):
                    return f
            f.close()  # the last holder removed the file between our open and our lock: try again with a new one
        raise self._refusal("a series of short runs")

    def _refusal(self, holder: str) -> LockedError:
        what = f"{escape_surrogates(str(self.target))} is being written by {holder}"
        return LockedError(what, hint="wait for it to end, or choose another --out")


def _try_lock(f: IO[str]) -> bool:
    try:
        return lock_descriptor(f.fileno(), blocking=False)
    except OSError:
        return True  # a file system without locks: writing without a lock is better than not writing at all


def _read_holder(f: IO[str]) -> LockHolder | None:
    try:
        f.seek(0)
        return LockHolder(**json.loads(f.read()))
    except (OSError, ValueError, TypeError):
        return None
