"""CacheKey <-> EncodedSegment on disk. The format of an entry is defined in entry.py.

Entries are written atomically, so any number of processes may share a cache; at worst, two of them encode the same
segment. The modification time of a file is its time of last use.

On an ordinary disk, an entry of 4 MB (8 x 257 x 1024) is written in 28 ms and read in 8 ms; an entry of 0.1 MB is
written in 8 ms and read in 0.2 ms. A third to a half of the write time is the fsync of `atomic_write`. Without it,
entries would still be safe (the checksum detects a torn one), but a power failure would lose everything encoded since
the last flush.
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
from vidqa.common.atomic_io import atomic_write
from vidqa.common.disk_space import is_disk_full, write_remedy
from vidqa.errors import CacheError
from vidqa.records import EncodedSegment

log = logging.getLogger(__name__)

_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of vidqa; backup programs may leave it out. See https://bford.info/cachedir/
"""
# The time of last use is updated at most this often: pruning works in days, so a write per read is unnecessary.
_TOUCH_AFTER_S = 3600.0
_NO_ACCESS = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class DamagedEntry:
    """A damaged entry and the reason."""

    path: Path
    reason: str


class FeatureStore:
    """The feature cache in a folder.

    Args:
        root: the cache folder; created if missing.

    Raises:
        CacheError: the folder cannot be created.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.damaged: list[DamagedEntry] = []
        create_cache_folder(self.root)

    def path(self, key: CacheKey) -> Path:
        """Return the path of the entry for `key`, whether it exists or not."""
        return self.root / key.relative

    def has(self, key: CacheKey) -> bool:
        """Return whether there is an entry. It is verified only when it is read."""
        return self.path(key).exists()

    def get(self, key: CacheKey) -> EncodedSegment | None:
        """Read an entry.

        Args:
            key: identity of the segment.

        Returns:
            The entry, bit for bit as it was stored; None if there is none. A damaged entry is logged, added to
            `damaged` and removed, and None is returned, so that the caller encodes the segment again.

        Raises:
            CacheError: the entry exists, but this user may not read it.
        """
        path = self.path(key)
        try:
            _, value = entry.unpack(_read(path), key)
        except FileNotFoundError:
            return None
        except CacheError as error:
            self._discard(path, error.what)
            return None
        except OSError as error:
            if error.errno in _NO_ACCESS:
                raise cache_error(self.root, error) from error
            self._discard(path, error.strerror or str(error))  # for example a bad disk block
            return None
        mark_used(path)
        return value

    def get_pooled(self, key: CacheKey) -> entry.PooledEntry | None:
        """Read the embedding, the times and the facts of an entry without its tokens.

        Args:
            key: identity of the segment.

        Returns:
            The pooled entry; None if there is none, or if it is damaged (see `get`).

        Raises:
            CacheError: the entry exists, but this user may not read it.
        """
        path = self.path(key)
        try:
            with path.open("rb") as f:
                found = entry.read_pooled(f, key)
        except FileNotFoundError:
            return None
        except (CacheError, OSError):  # `get` reads the whole entry, reports the damage and removes the file
            whole = self.get(key)
            if whole is None:
                return None
            return entry.PooledEntry(whole.features.embedding.copy(), whole.start_s, whole.end_s, whole.facts)
        mark_used(path)
        return found

    def put(self, key: CacheKey, value: EncodedSegment) -> None:
        """Write an entry atomically. It is on disk when this returns.

        Args:
            key: identity of the segment.
            value: the encoded segment.

        Raises:
            CacheError: the disk is full, or the folder is not writable.
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
        with atomic_write(path) as f:
            f.write(data)

    def _discard(self, path: Path, reason: str) -> None:
        self.damaged.append(DamagedEntry(path, reason))
        log.warning("damaged cache entry, the segment will be encoded again: %s: %s", path, reason)
        with cache_errors(self.root):
            path.unlink(missing_ok=True)


def _read(path: Path) -> np.ndarray:
    """Read a file as uint8 [n]; the features are later views of this memory."""
    with path.open("rb", buffering=0) as f:
        data: Any = np.empty(os.fstat(f.fileno()).st_size, np.uint8)
        view, n = memoryview(data), 0
        while n < len(data) and (got := f.readinto(view[n:])):
            n += got
    whole: np.ndarray = data[:n]
    return whole


def create_cache_folder(root: Path) -> None:
    """Create the cache folder and mark it as a cache for backup programs.

    Args:
        root: the cache folder.

    Raises:
        CacheError: it cannot be created.
    """
    with cache_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        tag = root / "CACHEDIR.TAG"
        if not tag.exists() and os.access(root, os.W_OK):  # a read-only cache is still useful
            with atomic_write(tag) as f:
                f.write(_TAG.encode())


@contextmanager
def cache_errors(root: Path) -> Iterator[None]:
    """Convert OSError inside the block to a CacheError that names the cache folder and a remedy."""
    try:
        yield
    except OSError as error:
        raise cache_error(root, error) from error


def cache_error(root: Path, error: OSError) -> CacheError:
    """Return the CacheError for an OSError in the cache folder `root`."""
    reason = error.strerror or str(error)
    if error.errno == errno.EFBIG:
        hint = f"{write_remedy(error, root)}, or use --cache-dir (VIDQA_CACHE)"
        return CacheError(f"cannot write to the cache folder {root}: {reason}", hint=hint)
    if is_disk_full(error):
        hint = "free disk space, run `vidqa cache prune --max-size 10GB`, or use --cache-dir (VIDQA_CACHE)"
        return CacheError(f"the disk of the cache folder {root} is full: {reason}", hint=hint)
    hint = "use another folder with --cache-dir (VIDQA_CACHE), or get write permission for this one"
    return CacheError(f"cannot use the cache folder {root}: {reason}", hint=hint)


def mark_used(path: Path) -> None:
    """Update a cache file's time of last use, which decides what is pruned. Writes at most once an hour per file."""
    now = time.time()
    try:
        if abs(now - path.stat().st_mtime) > _TOUCH_AFTER_S:
            os.utime(path, (now, now))
    except OSError:
        pass  # the cache belongs to another user, or the entry was just pruned: at worst it is pruned too early
