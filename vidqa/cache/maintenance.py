"""Keeping a cache in order: how large it is, whether it is sound, and what may go. Knows entries only as files.

Everything here may run beside a working vidqa: an entry that is removed under its hands is encoded again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidqa.cache import entry
from vidqa.cache.feature_store import DamagedEntry, cache_errors
from vidqa.cache.key import ENTRY_SUFFIX, FEATURES_FOLDER, RECORDS_FOLDER
from vidqa.cache.media_index import INDEX_NAME
from vidqa.errors import CacheError, UsageError

#: A temporary file older than this belongs to a process that died.
LEFTOVER_AFTER_S = 3600.0

_SIZE_UNITS = {"": 1, "b": 1, **{u + "b": 1000**i for i, u in enumerate("kmgt", 1)}}
_SIZE_UNITS |= {u + "ib": 1024**i for i, u in enumerate("kmgt", 1)} | {u: 1000**i for i, u in enumerate("kmgt", 1)}
_AGE_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclass(frozen=True)
class EncoderStats:
    """The entries of one encoder; times of last use in seconds since 1970."""

    encoder_id: str
    n_entries: int
    n_bytes: int
    oldest_use_s: float
    newest_use_s: float


@dataclass(frozen=True)
class CacheStats:
    """What lies in a cache."""

    root: Path
    n_entries: int
    n_bytes: int  # of the entries
    n_index_bytes: int
    n_leftovers: int  # temporary files, also those of runs at work
    encoders: tuple[EncoderStats, ...]  # largest first
    n_records: int = 0  # files that remember where the records of training data lie
    n_record_bytes: int = 0


@dataclass(frozen=True)
class VerifyReport:
    """What reading every entry found."""

    n_entries: int
    n_bytes: int
    damaged: tuple[DamagedEntry, ...]
    n_removed: int


@dataclass(frozen=True)
class PruneReport:
    """What pruning removed, or would remove."""

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
    """Bytes from `10GB`, `1.5 GiB`, `500M` or a plain number. KB is 1000, KiB is 1024.

    Raises:
        UsageError: not a size.
    """
    number, unit = _number_and_unit(text)
    if number is None or unit.lower() not in _SIZE_UNITS:
        raise UsageError(f"not a size: {text!r}", hint="a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB, as in 10GB")
    return int(number * _SIZE_UNITS[unit.lower()])


def parse_age(text: str) -> float:
    """Seconds from `30d`, `12h`, `90m`, `2w` or `45s`.

    Raises:
        UsageError: not an age. A number without a unit is none: nobody knows of what.
    """
    number, unit = _number_and_unit(text)
    if number is None or unit not in _AGE_UNITS:
        raise UsageError(f"not an age: {text!r}", hint="a number with s, m (minutes), h, d or w, as in 30d")
    return number * _AGE_UNITS[unit]


def stats(root: str | os.PathLike[str]) -> CacheStats:
    """Count entries and bytes, by encoder. An absent cache is an empty one.

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
    """Read every entry and check it: checksum, form, and that it lies where its key belongs.

    Args:
        root: folder of the cache.
        delete: remove what is damaged; it is encoded again when needed.

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
            continue  # pruned just now by another process
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
    """Remove entries by last use, and temporary files that dead processes left.

    What is remembered of files of training data counts as entries: it is made anew when it is needed.

    Args:
        root: folder of the cache.
        max_size: bytes that may stay; the longest unused entries go first.
        older_than_s: entries unused for longer than this go.
        dry_run: count, and remove nothing.
        now_s: the present, seconds since 1970; for tests.

    Raises:
        CacheError: the folder cannot be read or written.
    """
    root, now = Path(root), time.time() if now_s is None else now_s
    files = sorted([*_files(root), *_records(root)], key=lambda f: (f.used_s, f.path))
    left = sum(f.n_bytes for f in files)
    gone: list[_File] = []
    for f in files:
        too_old = older_than_s is not None and now - f.used_s > older_than_s
        too_much = max_size is not None and left > max_size
        if too_old or too_much:
            gone.append(f)
            left -= f.n_bytes
    stale = [f for f in _leftovers(root) if now - f.used_s > LEFTOVER_AFTER_S]
    if not dry_run:
        for f in gone + stale:
            _remove(root, f.path)
    n_bytes_removed = sum(f.n_bytes for f in gone)
    return PruneReport(len(gone), n_bytes_removed, len(files) - len(gone), left, len(stale))


def _number_and_unit(text: str) -> tuple[float | None, str]:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    return (float(match[1]), match[2]) if match else (None, "")


def _files(root: Path) -> Iterator[_File]:
    """Every entry, sound or not."""
    yield from (
        f
        for f in _walk(root / FEATURES_FOLDER, root)
        if f.path.suffix == ENTRY_SUFFIX and not f.path.name.startswith(".")
    )


def _records(root: Path) -> Iterator[_File]:
    """What is remembered of files of conversations. All that belongs to one of them was used when its index was: the
    JSON lines of a Parquet file are never touched, for a change of their time would stop who reads them."""
    found = [
        f for f in _walk(root / RECORDS_FOLDER, root) if f.path.suffix in (".npz", ".jsonl") and f.path.name[0] != "."
    ]
    used: dict[str, float] = {}
    for f in found:
        name = _of_file(f.path)
        used[name] = max(used.get(name, 0.0), f.used_s)
    yield from (_File(f.path, f.n_bytes, used[_of_file(f.path)]) for f in found)


def _of_file(path: Path) -> str:
    return "-".join(path.stem.split("-")[:2])


def _leftovers(root: Path) -> Iterator[_File]:
    """Every temporary file of a write that has not ended; those of other programs are none of ours."""
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
