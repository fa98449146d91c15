"""MediaItem -> media_id, and media_id -> MediaFacts, remembered on disk. Does not know what features are.

(path, size, mtime_ns) names a content as long as nothing changed, so a nightly run over unchanged files reads no byte
of them. SQLite in WAL mode keeps this: 100,000 look-ups take about a second, memory does not grow with the archive, two
processes may write, and kill -9 loses nothing (a power cut may lose the last few lines; those files are read again).
Network file systems that cannot do WAL get SQLite's ordinary journal.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from vidqa.cache.entry import facts_from_dict, facts_to_dict
from vidqa.cache.feature_store import cache_error, cache_errors, create_cache_folder
from vidqa.errors import CacheError, MediaError
from vidqa.records import MediaFacts, MediaItem

log = logging.getLogger(__name__)

INDEX_NAME = "index.sqlite3"
#: Raised by one when probing learns to tell better facts; older ones are then probed again.
FACTS_REVISION = 1

# Two writes within one tick of a file system's clock give the same mtime. FAT ticks every two seconds.
_TICK_NS = 2_000_000_000
_CHUNK = 1 << 20
# What SQLite's write-ahead log takes at most before it is emptied: with less, any of its writes may have failed.
_HEADROOM = 8 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, media_id TEXT, read_ns INTEGER)
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (media_id TEXT PRIMARY KEY, revision INTEGER, facts TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS probed (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, read_ns INTEGER,
  revision INTEGER, facts TEXT) WITHOUT ROWID;
"""


class MediaIndex:
    """The index below one cache folder. May be used from several threads; a forked child opens its own.

    Args:
        root: folder of the cache; made when missing.

    One that may only be read, as somebody else's cache, is copied into memory: what it knows serves, what is learned is
    forgotten with the object.

    Raises:
        CacheError: the index cannot be opened. A damaged one is replaced by an empty one instead, and logged.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.n_hashed = 0  # files whose content was read because the index did not know them
        create_cache_folder(self.root)
        self._lock = threading.Lock()
        with self._explained():
            try:
                self._db = _open(self.root / INDEX_NAME)
            except sqlite3.OperationalError:
                if not self._only_readable():
                    raise
                self._db = _open_copy(self.root / INDEX_NAME)
            except sqlite3.DatabaseError as error:
                log.warning("damaged index %s (%s): starting an empty one", self.root / INDEX_NAME, error)
                with cache_errors(self.root):
                    for name in (INDEX_NAME, INDEX_NAME + "-wal", INDEX_NAME + "-shm"):
                        (self.root / name).unlink(missing_ok=True)
                self._db = _open(self.root / INDEX_NAME)

    def close(self) -> None:
        """Let go of the file. The object is of no use afterwards."""
        with self._lock:
            self._db.close()

    def media_id(self, item: MediaItem) -> str:
        """Digest of a file's content: the first 32 hex digits of its sha256.

        No byte is read when the path was seen before with the same size and modification time; unless it was modified
        within the two seconds before it was last read, for then a later change could hide behind the same time.

        Raises:
            MediaError: the file is gone, may not be read, or keeps changing while it is read.
            CacheError: the index cannot be written.
        """
        return self.cached_media_id(item) or self.read(item)

    def read(self, item: MediaItem) -> str:
        """As `media_id`, but the file is read whether it is known or not.

        Raises:
            MediaError, CacheError: as `media_id`.
        """
        path, read_ns = os.fsencode(item.path), time.time_ns()
        size, mtime_ns, media_id = _digest_steady(item.path)
        self.n_hashed += 1
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (path, size, mtime_ns, media_id, read_ns))
        return media_id

    def cached_media_id(self, item: MediaItem) -> str | None:
        """As `media_id`, but None where the file would have to be read."""
        path = os.fsencode(item.path)
        found = self._one("SELECT size, mtime_ns, media_id, read_ns FROM files WHERE path = ?", (path,))
        if found is None:
            return None
        size, mtime_ns, media_id, read_ns = found
        unchanged = (size, mtime_ns) == (item.size, item.mtime_ns) and abs(read_ns - mtime_ns) > _TICK_NS
        return str(media_id) if unchanged else None

    def facts(self, media_id: str) -> MediaFacts | None:
        """What is known of a content, or None when nobody told."""
        row = self._one("SELECT revision, facts FROM facts WHERE media_id = ?", (media_id,))
        if row is None or row[0] != FACTS_REVISION:
            return None
        return _facts(row[1])

    def store_facts(self, media_id: str, facts: MediaFacts) -> None:
        """Keep the facts of a content.

        Raises:
            CacheError: the index cannot be written.
        """
        row = (media_id, FACTS_REVISION, json.dumps(facts_to_dict(facts)))
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row)

    def probed_facts(self, path: str, size: int, mtime_ns: int) -> MediaFacts | None:
        """Facts of a file that was opened and decoded well while it had this size and modification time.

        Its content need not have been read: this is for who wants to know whether a file can be decoded, no more.
        """
        wanted = (os.fsencode(path), size, mtime_ns, FACTS_REVISION)
        row = self._one(
            "SELECT read_ns, facts FROM probed WHERE path = ? AND size = ? AND mtime_ns = ? AND revision = ?", wanted
        )
        if row is None or abs(row[0] - mtime_ns) <= _TICK_NS:
            return None
        return _facts(row[1])

    def store_probed_facts(self, path: str, size: int, mtime_ns: int, read_ns: int, facts: MediaFacts) -> None:
        """Keep what `probed` gives.

        Args:
            path: of the file.
            size: in bytes, before it was read.
            mtime_ns: its modification time then.
            read_ns: time at which reading began.
            facts: what was found.

        Raises:
            CacheError: the index cannot be written.
        """
        row = (os.fsencode(path), size, mtime_ns, read_ns, FACTS_REVISION, json.dumps(facts_to_dict(facts)))
        self._write("INSERT OR REPLACE INTO probed VALUES (?, ?, ?, ?, ?, ?)", row)

    def n_files(self) -> int:
        """How many paths are known."""
        row = self._one("SELECT count(*) FROM files", ())
        return int(row[0]) if row else 0

    def _one(self, sql: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        with self._lock, self._explained():
            row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
            return row

    def _write(self, sql: str, values: tuple[object, ...]) -> None:
        with self._lock, self._explained():
            self._db.execute(sql, values)  # commits by itself

    def _only_readable(self) -> bool:
        """Whether the index is there for others to write; SQLite would also write beside it, into the folder."""
        path = self.root / INDEX_NAME
        return os.access(path, os.R_OK) and not (os.access(path, os.W_OK) and os.access(self.root, os.W_OK))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            # SQLite calls a full disk by its name only where it writes itself, not where it maps the file.
            if "full" in text or ("I/O" in text and _is_full(self.root)):
                raise cache_error(self.root, OSError(errno.ENOSPC, text)) from error
            if "readonly" in text or "unable to open" in text:
                raise cache_error(self.root, OSError(errno.EACCES, text)) from error
            hint = f"if no other vidqa is running, remove {self.root / INDEX_NAME}*; it is made anew"
            raise CacheError(f"the index of the cache folder {self.root} failed: {text}", hint=hint) from error


def _facts(text: object) -> MediaFacts | None:
    try:
        return facts_from_dict(json.loads(str(text)))
    except (ValueError, TypeError):
        return None  # written by another version: probe again


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _HEADROOM
    except OSError:
        return False


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
    """The index in memory. Without a write-ahead log nobody has it open, and it can be read without any lock."""
    how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", timeout=60.0, uri=True)) as on_disk:
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            on_disk.backup(db)
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
    return db


def _digest_steady(path: str) -> tuple[int, int, str]:
    """(size, mtime_ns, media_id) of one state of a file: it is read anew when it changed while it was read."""
    for _ in range(3):
        before, digest, after = _read(path)
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            return before.st_size, before.st_mtime_ns, digest
    raise MediaError("unreadable", "the file keeps changing while it is read", hint="run again when it is complete")


def _read(path: str) -> tuple[os.stat_result, str, os.stat_result]:
    try:
        # Not blocking: a pipe put in the place of a file must not hang the run.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(fd, "rb", buffering=0) as f:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise MediaError("not_media", "not an ordinary file")
            h, n_left = hashlib.sha256(), before.st_size
            # No further than the file's size: the end of one that grows as fast as it is read would never come.
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
