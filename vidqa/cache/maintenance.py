"""Cache maintenance: statistics, verification, pruning.

It is safe to run these while other vidqa processes use the cache: they encode removed entries again.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vidqa.cache import entry
from vidqa.cache.feature_store import DamagedEntry, cache_errors
from vidqa.cache.key import ENTRY_SUFFIX, FEATURES_FOLDER, RECORDS_FOLDER
from vidqa.cache.media_index import INDEX_NAME
from vidqa.errors import CacheError, UsageError

#: A temporary file older than this many seconds is assumed to be left by a killed process.
LEFTOVER_AFTER_S = 3600.0
#: How far the clocks of machines that share a cache may differ.
_CLOCK_ERROR_S = 86400.0

_SIZE_UNITS = {"": 1, "b": 1, **{u + "b": 1000**i for i, u in enumerate("kmgt", 1)}}
_SIZE_UNITS |= {u + "ib": 1024**i for i, u in enumerate("kmgt", 1)} | {u: 1000**i for i, u in enumerate("kmgt", 1)}


@dataclass(frozen=True)
class EncoderStats:
    """The entries of one encoder. Times of last use are in seconds since 1970."""

    encoder_id: str
    n_entries: int
    n_bytes: int
    oldest_use_s: float
    newest_use_s: float


@dataclass(frozen=True)
class CacheStats:
    """Content of a cache."""

    root: Path
    n_entries: int
    n_bytes: int  # of the entries
    n_index_bytes: int
    n_leftovers: int  # temporary files, including those of active runs
    encoders: tuple[EncoderStats, ...]  # largest first
    n_records: int = 0  # record indexes of training data
    n_record_bytes: int = 0


@dataclass(frozen=True)
class VerifyReport:
    """Result of verifying every entry."""

    n_entries: int
    n_bytes: int
    damaged: tuple[DamagedEntry, ...]
    n_removed: int


@dataclass(frozen=True)
class PruneReport:
    """Files that pruning removed, or would remove."""

    n_removed: int
    n_bytes_removed: int
    n_left: int
    n_bytes_left: int
    n_leftovers_removed: int


@dataclass(frozen=True)
class _File:
    path: Path
    n_bytes: int
    used_s: float


def parse_size(text: str) -> int:
    """Parse a size such as `10GB`, `1.5 GiB`, `500M` or a plain number of bytes. KB is 1000 bytes, KiB is 1024.

    Args:
        text: the size.

    Returns:
        The number of bytes.

    Raises:
        UsageError: not a size.
    """
    number, unit = _number_and_unit(text)
    if number is None or unit.lower() not in _SIZE_UNITS or not math.isfinite(number * _SIZE_UNITS[unit.lower()]):
        raise UsageError(
            f"not a size: {text!r}", hint="use a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 10GB"
        )
    return int(number * _SIZE_UNITS[unit.lower()])


def stats(root: str | os.PathLike[str]) -> CacheStats:
    """Count entries and bytes by encoder. A missing folder counts as an empty cache.

    Args:
        root: the cache folder.

    Raises:
        CacheError: the folder cannot be read.
    """
    root = Path(root)
    by_encoder: dict[str, list[_File]] = {}
    for f in _files(root):
        by_encoder.setdefault(f.path.parent.parent.name, []).append(f)
    encoders = [
        EncoderStats(e, len(fs), sum(f.n_bytes for f in fs), min(f.used_s for f in fs), max(f.used_s for f in fs))
        for e, fs in by_encoder.items()
    ]
    encoders.sort(key=lambda e: (-e.n_bytes, e.encoder_id))
    index_bytes = sum(p.stat().st_size for p in root.glob(INDEX_NAME + "*"))
    n_leftovers = sum(1 for _ in _leftovers(root))
    n_entries, n_bytes = sum(e.n_entries for e in encoders), sum(e.n_bytes for e in encoders)
    records = list(_records(root))
    n_record_bytes = sum(f.n_bytes for f in records)
    return CacheStats(root, n_entries, n_bytes, index_bytes, n_leftovers, tuple(encoders), len(records), n_record_bytes)


def verify(root: str | os.PathLike[str], *, delete: bool = False) -> VerifyReport:
    """Read every entry and verify its checksum, its format, its key, and that its values are finite.

    Args:
        root: the cache folder.
        delete: remove damaged entries; they are encoded again when needed.

    Raises:
        CacheError: the folder cannot be read, or damaged entries cannot be removed.
    """
    root = Path(root)
    damaged: list[DamagedEntry] = []
    n_entries = n_bytes = n_removed = 0
    for f in _files(root):
        try:
            data = f.path.read_bytes()
            key, _ = entry.unpack(data)
            if root / key.relative != f.path:
                raise CacheError(f"belongs to another key: {key}")
        except FileNotFoundError:
            continue  # just pruned by another process
        except CacheError as error:
            damaged.append(DamagedEntry(f.path, error.what))
        except OSError as error:
            damaged.append(DamagedEntry(f.path, error.strerror or str(error)))
        n_entries, n_bytes = n_entries + 1, n_bytes + f.n_bytes
    if delete:
        n_removed = sum(_remove(root, d.path) for d in damaged)
    return VerifyReport(n_entries, n_bytes, tuple(damaged), n_removed)


def prune(
    root: str | os.PathLike[str],
    *,
    max_size: int | None = None,
    older_than_s: float | None = None,
    dry_run: bool = False,
    now_s: float | None = None,
) -> PruneReport:
    """Remove entries by time of last use, and temporary files left by killed processes.

    Record indexes of training data count as entries: they are created again when needed.

    Args:
        root: the cache folder.
        max_size: size to shrink the cache to, in bytes; the least recently used entries are removed first.
        older_than_s: remove entries that have not been used for this many seconds.
        dry_run: only count.
        now_s: current time in seconds since 1970; for tests.

    Raises:
        CacheError: the folder cannot be read or written.
    """
    root, now = Path(root), time.time() if now_s is None else now_s
    files = sorted((_dated(f, now) for f in (*_files(root), *_records(root))), key=lambda f: (f.used_s, f.path))
    left = sum(f.n_bytes for f in files)
    pruned: list[_File] = []
    for f in files:
        too_old = older_than_s is not None and now - f.used_s > older_than_s
        too_much = max_size is not None and left > max_size
        if too_old or too_much:
            pruned.append(f)
            left -= f.n_bytes
    stale = [f for f in _leftovers(root) if now - _dated(f, now).used_s > LEFTOVER_AFTER_S]
    if not dry_run:
        for f in pruned + stale:
            _remove(root, f.path)
    n_bytes_removed = sum(f.n_bytes for f in pruned)
    return PruneReport(len(pruned), n_bytes_removed, len(files) - len(pruned), left, len(stale))


def _dated(file: _File, now_s: float) -> _File:
    """Return a file; if its time of last use is far in the future (a wrong clock), as if it had never been used."""
    return file if file.used_s <= now_s + _CLOCK_ERROR_S else replace(file, used_s=0.0)


def _number_and_unit(text: str) -> tuple[float | None, str]:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    return (float(match[1]), match[2]) if match else (None, "")


def _files(root: Path) -> Iterator[_File]:
    """Yield every entry, damaged or not."""
    yield from (
        f
        for f in _walk(root / FEATURES_FOLDER, root)
        if f.path.suffix == ENTRY_SUFFIX and not f.path.name.startswith(".")
    )


def _records(root: Path) -> Iterator[_File]:
    """Yield the record indexes of training data. All files of one index share the latest time of last use.

    The modification time of the .jsonl copy of a Parquet file is never updated, because that would interrupt its
    readers.
    """
    found = [
        f for f in _walk(root / RECORDS_FOLDER, root) if f.path.suffix in (".npz", ".jsonl") and f.path.name[0] != "."
    ]
    used: dict[str, float] = {}
    for f in found:
        name = _index_name(f.path)
        used[name] = max(used.get(name, 0.0), f.used_s)
    yield from (_File(f.path, f.n_bytes, used[_index_name(f.path)]) for f in found)


def _index_name(path: Path) -> str:
    return "-".join(path.stem.split("-")[:2])


def _leftovers(root: Path) -> Iterator[_File]:
    """Yield the temporary files of unfinished writes; files of other programs are not included."""
    for folder in (FEATURES_FOLDER, RECORDS_FOLDER):
        yield from (f for f in _walk(root / folder, root) if f.path.name.startswith(".") and f.path.suffix == ".part")


def _walk(folder: Path, root: Path) -> Iterator[_File]:
    with cache_errors(root):
        try:
            found = sorted(os.scandir(folder), key=lambda e: e.name)
        except FileNotFoundError:
            return
        for e in found:
            if e.is_dir(follow_symlinks=False):
                yield from _walk(Path(e.path), root)
                continue
            try:
                s = e.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield _File(Path(e.path), s.st_size, s.st_mtime)


def _remove(root: Path, path: Path) -> int:
    with cache_errors(root):
        try:
            path.unlink()
        except FileNotFoundError:
            return 0
    return 1
