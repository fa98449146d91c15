"""Files of a scan -> those that a run processes, and why the others are excluded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from vidqa.media.selection.file_selection import FileSelection
from vidqa.media.selection.path_patterns import Exclusion
from vidqa.records import MediaItem

#: Files whose durations are read together for a sample.
_CHUNK = 256

#: Files -> seconds by path; None if a file has no duration.
ReadDurations = Callable[[Sequence[MediaItem]], Mapping[str, float | None]]


@dataclass(frozen=True)
class ExcludedFile:
    """A file that a filter excludes, and why."""

    item: MediaItem
    why: Exclusion


@dataclass(frozen=True)
class ChosenFiles:
    """The files to process, in the order of the scan, and the others."""

    items: tuple[MediaItem, ...]
    excluded: tuple[ExcludedFile, ...]


def choose_files(
    items: Sequence[MediaItem],
    selection: FileSelection,
    read_durations: ReadDurations,
    now: datetime | None = None,
) -> ChosenFiles:
    """Apply the filters on modification time and duration, then take the sample.

    Args:
        items: of the scan.
        selection: the scan has applied the patterns; later stages, which see what files have work, apply `limit`.
        read_durations: called only if there are limits on durations, and only for files that other filters keep.
        now: ages count back from here; None for the present.
    """
    excluded: list[ExcludedFile] = []
    now = now or datetime.now(UTC)
    kept = _by_time(items, selection, now, excluded)
    if selection.sample is None:
        return ChosenFiles(tuple(_by_duration(kept, selection, read_durations, excluded)), tuple(excluded))
    ordered, sampled = _in_random_order(kept, selection.seed), list[MediaItem]()
    n_examined = 0
    while n_examined < len(ordered) and len(sampled) < selection.sample:
        n = max(_CHUNK, selection.sample) if selection.durations_s else selection.sample
        sampled += _by_duration(ordered[n_examined : n_examined + n], selection, read_durations, excluded)
        n_examined += n
    rest = [*sampled[selection.sample :], *ordered[n_examined:]]
    excluded += (ExcludedFile(item, Exclusion("--sample", "not in the sample")) for item in rest)
    paths = {item.path for item in sampled[: selection.sample]}
    return ChosenFiles(tuple(item for item in items if item.path in paths), tuple(excluded))


def _by_time(
    items: Iterable[MediaItem], selection: FileSelection, now: datetime, excluded: list[ExcludedFile]
) -> list[MediaItem]:
    first_ns, end_ns = selection.window_ns(now)
    kept = []
    for item in items:
        if first_ns is not None and item.mtime_ns < first_ns:
            excluded.append(ExcludedFile(item, Exclusion("--newer-than", _modified(item))))
        elif end_ns is not None and item.mtime_ns >= end_ns:
            excluded.append(ExcludedFile(item, Exclusion("--older-than", _modified(item))))
        else:
            kept.append(item)
    return kept


def _by_duration(
    items: Sequence[MediaItem], selection: FileSelection, read_durations: ReadDurations, excluded: list[ExcludedFile]
) -> list[MediaItem]:
    """Keep files without a duration, so that an image is described and a damaged file has its failed row."""
    if selection.durations_s is None:
        return list(items)
    (least_s, most_s), durations, kept = selection.durations_s, read_durations(items), []
    for item in items:
        seconds = durations[item.path]
        if seconds is not None and seconds < least_s:
            excluded.append(ExcludedFile(item, Exclusion("--min-duration", f"{seconds:.1f} s")))
        elif seconds is not None and seconds > most_s:
            excluded.append(ExcludedFile(item, Exclusion("--max-duration", f"{seconds:.1f} s")))
        else:
            kept.append(item)
    return kept


def _in_random_order(items: Sequence[MediaItem], seed: int) -> list[MediaItem]:
    """Sort files by a hash of their names, so that adding files does not change the order of the others.

    The name is relative to the searched root, so the archive may be mounted elsewhere.
    """
    names = Counter(item.rel for item in items)

    def key(item: MediaItem) -> tuple[bytes, str]:
        name = (
            item.rel if names[item.rel] == 1 else item.path
        )  # or else files with equal names would be sampled together
        return sha256(os.fsencode(f"{seed}\0{name}")).digest(), item.path

    return sorted(items, key=key)


def _modified(item: MediaItem) -> str:
    try:
        return f"modified {datetime.fromtimestamp(item.mtime_ns // 10**9).isoformat(sep=' ')}"
    except (OverflowError, OSError, ValueError):  # a date that Python cannot represent
        return "by its modification time"
