"""CacheKey -> EncodedSegment on disk, and back. Knows folders and files; the form of an entry is entry.py's.

Entries are whole or absent, so any number of processes may read and write one cache: the worst that two can do to each
other is to encode a segment twice. The time of last use is the file's modification time.

Cost on an ordinary disk: an entry of 4 MB (8 x 257 x 1024) is written in 28 ms and read in 8; one of 0.1 MB in 8 and
0.2. A third to a half of the writing is fsync, which `atomic_io.atomic_write` does; without it entries would still be safe (the
checksum finds a torn one), but a power cut would cost the encoding of everything since the last flush.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidqa.cache import entry
from vidqa.cache.key import CacheKey
from vidqa.common import atomic_io
from vidqa.errors import CacheError
from vidqa.records import EncodedSegment

log = logging.getLogger(__name__)

_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of vidqa; backup programs may leave it out. See https://bford.info/cachedir/
"""
# The last use is noted at most this often: pruning works in days, and a write per read would be a waste.
_TOUCH_AFTER_S = 3600.0
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_WRITE = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class DamagedEntry:
    """An entry that was found damaged, and why."""

    path: Path
    reason: str


class FeatureStore:
    """The feature cache below one folder; the folder is made when missing.

    Args:
        root: folder of the cache.

    Raises:
        CacheError: the folder cannot be made.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.damaged: list[DamagedEntry] = []
        create_cache_folder(self.root)

    def path(self, key: CacheKey) -> Path:
        """Where the entry of `key` lies, if it is there."""
        return self.root / key.relative

    def has(self, key: CacheKey) -> bool:
        """True when there is an entry; whether it is sound shows when it is read."""
        return self.path(key).exists()

    def get(self, key: CacheKey) -> EncodedSegment | None:
        """Read an entry.

        Returns:
            What was put there, bit for bit; None when there is none. A damaged entry is logged, noted in `damaged` and
            removed, and counts as none, so that the caller encodes the segment again.

        Raises:
            CacheError: an entry is there but may not be read.
        """
        path = self.path(key)
        try:
            _, value = entry.unpack(_read(path), key)
        except FileNotFoundError:
            return None
        except CacheError as error:
            self._give_up(path, error.what)
            return None
        except OSError as error:
            if error.errno in _NO_WRITE:
                raise cache_error(self.root, error) from error
            self._give_up(path, error.strerror or str(error))  # a bad block of the disk
            return None
        mark_used(path)
        return value

    def get_pooled(self, key: CacheKey) -> entry.PooledEntry | None:
        """As `get`, but only the embedding, the times and the facts of an entry; its tokens are not read.

        Raises:
            CacheError: an entry is there but may not be read.
        """
        path = self.path(key)
        try:
            with path.open("rb") as f:
                found = entry.read_pooled(f, key)
        except FileNotFoundError:
            return None
        except (CacheError, OSError):  # `get` reads it whole, says what is wrong and removes it
            whole = self.get(key)
            if whole is None:
                return None
            return entry.PooledEntry(whole.features.embedding.copy(), whole.start_s, whole.end_s, whole.facts)
        mark_used(path)
        return found

    def put(self, key: CacheKey, value: EncodedSegment) -> None:
        """Write an entry, whole or not at all; it has reached the disk when this returns.

        Raises:
            CacheError: no room, or the folder cannot be written. Says which folder and what to try.
        """
        path, data = self.path(key), entry.pack(key, value)
        with cache_errors(self.root):
            try:
                self._write(path, data)
            except FileNotFoundError:  # first entry of this folder
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write(path, data)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        with atomic_io.atomic_write(path) as f:
            f.write(data)

    def _give_up(self, path: Path, reason: str) -> None:
        self.damaged.append(DamagedEntry(path, reason))
        log.warning("damaged cache entry, will be encoded again: %s: %s", path, reason)
        with cache_errors(self.root):
            path.unlink(missing_ok=True)


def _read(path: Path) -> np.ndarray:
    """A whole file as uint8 [n], straight into the memory that the features will live in."""
    with path.open("rb", buffering=0) as f:
        data: Any = np.empty(os.fstat(f.fileno()).st_size, np.uint8)
        view, n = memoryview(data), 0
        while n < len(data) and (got := f.readinto(view[n:])):
            n += got
    whole: np.ndarray = data[:n]
    return whole


def create_cache_folder(root: Path) -> None:
    """Make the cache folder and mark it as a cache for backup programs.

    Raises:
        CacheError: it cannot be made.
    """
    with cache_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        tag = root / "CACHEDIR.TAG"
        if not tag.exists() and os.access(root, os.W_OK):  # a cache that may only be read still serves
            with atomic_io.atomic_write(tag) as f:
                f.write(_TAG.encode())


@contextmanager
def cache_errors(root: Path) -> Iterator[None]:
    """Turn the system's errors inside the block into a CacheError that names the cache folder and what to try."""
    try:
        yield
    except OSError as error:
        raise cache_error(root, error) from error


def cache_error(root: Path, error: OSError) -> CacheError:
    """What to tell a user about a system error under `root`."""
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        hint = "free some space, `vidqa cache prune --max-size 10GB`, or another folder with --cache-dir (VIDQA_CACHE)"
        return CacheError(f"no room in the cache folder {root}: {reason}", hint=hint)
    hint = "another folder with --cache-dir (VIDQA_CACHE), or the rights to write this one"
    return CacheError(f"cannot use the cache folder {root}: {reason}", hint=hint)


def mark_used(path: Path) -> None:
    """Let a file of the cache be the last that pruning takes; seldom written, for it costs a write."""
    now = time.time()
    try:
        if abs(now - path.stat().st_mtime) > _TOUCH_AFTER_S:
            os.utime(path, (now, now))
    except OSError:
        pass  # somebody else's cache, or pruned just now: pruning may then come early, nothing worse
