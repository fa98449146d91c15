"""MediaItem -> media_id and media_id -> MediaFacts, stored on disk.

A file with the same path, size and mtime_ns is considered unchanged and is not read again. The index is a SQLite
database in WAL mode: 100,000 lookups take about a second, memory use does not grow with the number of files, several
processes may write, and kill -9 loses nothing (a power failure may lose the last few rows; those files are read again).
On network file systems without WAL support, SQLite uses its rollback journal.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from vidqa.cache.entry import facts_from_dict, facts_to_dict
from vidqa.cache.feature_store import cache_error, cache_errors, create_cache_folder
from vidqa.common.disk_space import write_failure
from vidqa.errors import CacheError, MediaError
from vidqa.records import MediaFacts, MediaItem

log = logging.getLogger(__name__)

INDEX_NAME = "index.sqlite3"
#: Incremented when probing returns better facts; files with older facts are probed again.
FACTS_REVISION = 1

# Two writes within the timestamp resolution of a file system have the same mtime. FAT has two seconds.
_MTIME_RESOLUTION_NS = 2_000_000_000
_CHUNK = 1 << 20
# Maximum size of SQLite's write-ahead log before a checkpoint: with less free space, any of its writes may have failed.
_WAL_BYTES = 8 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, media_id TEXT, read_ns INTEGER)
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (media_id TEXT PRIMARY KEY, revision INTEGER, facts TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS probed (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, read_ns INTEGER,
  revision INTEGER, facts TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS durations (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, read_ns INTEGER,
  duration_s REAL) WITHOUT ROWID;
"""


class MediaIndex:
    """The media index of a cache folder. Thread-safe; a forked child must open its own.

    A read-only index, such as one in another user's cache, is copied into memory; changes are then lost when it is
    closed. A damaged index is replaced by an empty one, with a warning.

    Args:
        root: the cache folder; created if missing.

    Raises:
        CacheError: the index cannot be opened.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.n_hashed = 0  # files that were read because they were not in the index
        create_cache_folder(self.root)
        self._lock = threading.Lock()
        with self._explained():
            try:
                self._db = _open(self.root / INDEX_NAME)
            except sqlite3.OperationalError:
                if not self._is_read_only():
                    raise
                self._db = _open_copy(self.root / INDEX_NAME)
            except sqlite3.DatabaseError as error:
                log.warning("damaged index %s (%s): replaced by an empty one", self.root / INDEX_NAME, error)
                with cache_errors(self.root):
                    for name in (INDEX_NAME, INDEX_NAME + "-wal", INDEX_NAME + "-shm"):
                        (self.root / name).unlink(missing_ok=True)
                self._db = _open(self.root / INDEX_NAME)

    def close(self) -> None:
        """Close the database. The object cannot be used afterwards."""
        with self._lock:
            self._db.close()

    def media_id(self, item: MediaItem) -> str:
        """Return the digest of a file's content: the first 32 hex digits of its SHA-256.

        The file is not read if it is in the index with the same size and modification time, unless it was modified in
        the two seconds before it was last read: a later change could then have the same modification time.

        Args:
            item: the file as the scan found it.

        Raises:
            MediaError: the file is missing, not readable, or changes while it is read.
            CacheError: the index cannot be written.
        """
        return self.cached_media_id(item) or self.hash_file(item)

    def hash_file(self, item: MediaItem) -> str:
        """Read a file and store its digest in the index, even if the index has one already.

        Args:
            item: the file as the scan found it.

        Raises:
            MediaError: the file is missing, not readable, or changes while it is read.
            CacheError: the index cannot be written.
        """
        path, read_ns = os.fsencode(item.path), _as_int64(time.time_ns())
        size, mtime_ns, media_id = _digest_stable(item.path)
        mtime_ns = _as_int64(mtime_ns)
        self.n_hashed += 1
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (path, size, mtime_ns, media_id, read_ns))
        return media_id

    def cached_media_id(self, item: MediaItem) -> str | None:
        """Return the digest of a file if it is in the index and unchanged; None if the file would have to be read."""
        path = os.fsencode(item.path)
        found = self._one("SELECT size, mtime_ns, media_id, read_ns FROM files WHERE path = ?", (path,))
        if found is None:
            return None
        size, mtime_ns, media_id, read_ns = found
        is_same = (size, mtime_ns) == (item.size, _as_int64(item.mtime_ns))
        return str(media_id) if is_same and abs(read_ns - mtime_ns) > _MTIME_RESOLUTION_NS else None

    def facts(self, media_id: str) -> MediaFacts | None:
        """Return the facts of a media_id; None if there are none, or of an older revision."""
        row = self._one("SELECT revision, facts FROM facts WHERE media_id = ?", (media_id,))
        if row is None or row[0] != FACTS_REVISION:
            return None
        return _facts(row[1])

    def store_facts(self, media_id: str, facts: MediaFacts) -> None:
        """Store the facts of a media_id.

        Args:
            media_id: digest of the content.
            facts: its facts.

        Raises:
            CacheError: the index cannot be written.
        """
        row = (media_id, FACTS_REVISION, json.dumps(facts_to_dict(facts)))
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row)

    def probed_facts(self, path: str, size: int, mtime_ns: int) -> MediaFacts | None:
        """Return the facts of a file that was decoded successfully with this size and modification time.

        Its content need not have been hashed: this only records that the file can be decoded.

        Args:
            path: path of the file.
            size: its size in bytes.
            mtime_ns: its modification time in ns.
        """
        mtime_ns = _as_int64(mtime_ns)
        wanted = (os.fsencode(path), size, mtime_ns, FACTS_REVISION)
        row = self._one(
            "SELECT read_ns, facts FROM probed WHERE path = ? AND size = ? AND mtime_ns = ? AND revision = ?", wanted
        )
        if row is None or abs(row[0] - mtime_ns) <= _MTIME_RESOLUTION_NS:
            return None
        return _facts(row[1])

    def store_probed_facts(self, path: str, size: int, mtime_ns: int, read_ns: int, facts: MediaFacts) -> None:
        """Store the facts of a file for `probed_facts`.

        Args:
            path: path of the file.
            size: its size in bytes before it was read.
            mtime_ns: its modification time in ns before it was read.
            read_ns: time at which reading started, in ns since 1970.
            facts: its facts.

        Raises:
            CacheError: the index cannot be written.
        """
        times = (_as_int64(mtime_ns), _as_int64(read_ns))
        row = (os.fsencode(path), size, *times, FACTS_REVISION, json.dumps(facts_to_dict(facts)))
        self._write("INSERT OR REPLACE INTO probed VALUES (?, ?, ?, ?, ?, ?)", row)

    def duration(self, item: MediaItem) -> tuple[bool, float | None]:
        """Return whether the index has the duration of an unchanged file, and the seconds.

        Args:
            item: the file as the scan found it.

        Returns:
            (True, None) for an image, and for a file whose duration cannot be determined.
        """
        mtime_ns = _as_int64(item.mtime_ns)
        sql = "SELECT duration_s, read_ns FROM durations WHERE path = ? AND size = ? AND mtime_ns = ?"
        row = self._one(sql, (os.fsencode(item.path), item.size, mtime_ns))
        if row is not None and abs(row[1] - mtime_ns) > _MTIME_RESOLUTION_NS:
            return True, row[0]
        media_id = self.cached_media_id(item)
        facts = self.facts(media_id) if media_id else None
        if facts is None or (facts.kind == "video" and facts.duration_s is None):
            return False, None
        return True, facts.duration_s if facts.kind == "video" else None

    def store_duration(self, item: MediaItem, read_ns: int, duration_s: float | None) -> None:
        """Store the duration of a file, whose content need not have been hashed.

        Args:
            item: the file as the scan found it, before it was read.
            read_ns: time at which reading started, in ns since 1970.
            duration_s: seconds; None for an image, or if it cannot be determined.

        Raises:
            CacheError: the index cannot be written.
        """
        row = (os.fsencode(item.path), item.size, _as_int64(item.mtime_ns), _as_int64(read_ns), duration_s)
        self._write("INSERT OR REPLACE INTO durations VALUES (?, ?, ?, ?, ?)", row)

    def sizes(self, media_ids: Iterable[str]) -> dict[str, int]:
        """Return the sizes in bytes of contents that were hashed, by media_id. Reads the complete index.

        Args:
            media_ids: of the contents; those that are not in the index are missing from the result.
        """
        wanted = set(media_ids)
        with self._lock, self._explained():
            rows = self._db.execute("SELECT media_id, size FROM files")
            return {media_id: size for media_id, size in rows if media_id in wanted}

    def n_files(self) -> int:
        """Return the number of paths in the index."""
        row = self._one("SELECT count(*) FROM files", ())
        return int(row[0]) if row else 0

    def _one(self, sql: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        with self._lock, self._explained():
            row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
            return row

    def _write(self, sql: str, values: tuple[object, ...]) -> None:
        with self._lock, self._explained():
            self._db.execute(sql, values)  # autocommit

    def _is_read_only(self) -> bool:
        """Return whether the index can be read, but it or its folder (for SQLite's other files) cannot be written."""
        path = self.root / INDEX_NAME
        return os.access(path, os.R_OK) and not (os.access(path, os.W_OK) and os.access(self.root, os.W_OK))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "full" in text:
                raise cache_error(self.root, OSError(errno.ENOSPC, text)) from error
            # SQLite reports a full disk as such only from write(). From memory-mapped files it is an I/O error, as is a
            # limit on file sizes.
            if "I/O" in text and (failure := write_failure(self.root, _WAL_BYTES)) is not None:
                raise cache_error(self.root, failure) from error
            if "readonly" in text or "unable to open" in text:
                raise cache_error(self.root, OSError(errno.EACCES, text)) from error
            hint = f"if no other vidqa is running, remove {self.root / INDEX_NAME}*; it is then created again"
            raise CacheError(f"the index of the cache folder {self.root} failed: {text}", hint=hint) from error


def _as_int64(time_ns: int) -> int:
    """Return a time as SQLite can store it. File systems allow years after 2262, which overflow int64 nanoseconds.

    Such times wrap around rather than being clamped, so that different times stay different.
    """
    return (time_ns + (1 << 63)) % (1 << 64) - (1 << 63)


def _facts(text: object) -> MediaFacts | None:
    try:
        return facts_from_dict(json.loads(str(text)))
    except (ValueError, TypeError, ZeroDivisionError):
        return None  # damaged, or written by another version: probe again


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
        db.execute("SELECT path, size, mtime_ns, media_id, read_ns FROM files LIMIT 1").fetchone()
    except sqlite3.Error:
        db.close()
        raise
    return db


def _open_copy(path: Path) -> sqlite3.Connection:
    """Copy the index into memory. Without a WAL file no process has it open, so it can be read without a lock."""
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", timeout=60.0, uri=True)) as on_disk:
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            on_disk.backup(db)
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
    return db


def _digest_stable(path: str) -> tuple[int, int, str]:
    """Return (size, mtime_ns, media_id) of a consistent state of a file; read it again if it changed meanwhile."""
    for _ in range(3):
        before, digest, after = _read(path)
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            return before.st_size, before.st_mtime_ns, digest
    raise MediaError("changed", "the file keeps changing while it is read", hint="run again when it is complete")


def _read(path: str) -> tuple[os.stat_result, str, os.stat_result]:
    try:
        # Non-blocking, because the file may have been replaced by a pipe.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(fd, "rb", buffering=0) as f:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise MediaError("not_media", "not a regular file")
            h, n_left = hashlib.sha256(), before.st_size
            # Stop at the initial size, because the end of a growing file may never be reached.
            while n_left > 0 and (chunk := f.read(min(_CHUNK, n_left))):
                h.update(chunk)
                n_left -= len(chunk)
            return before, h.hexdigest()[:32], os.fstat(fd)
    except FileNotFoundError:
        raise MediaError("missing", "no such file") from None
    except PermissionError:
        raise MediaError("permission", "this user may not read the file") from None
    except OSError as error:
        raise MediaError("unreadable", f"the file cannot be read: {error.strerror or error}") from error
