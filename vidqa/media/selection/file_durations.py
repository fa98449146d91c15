"""Files -> durations of videos, from earlier runs or from decoder processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from vidqa.errors import MediaError
from vidqa.media.probe import probe
from vidqa.media.workers.decode_pool import DecodePool
from vidqa.records import MediaItem

#: Errors that do not depend on the content: the file is probed again in the next run.
_TRANSIENT = frozenset({"missing", "permission", "changed"})


class DurationStore(Protocol):
    """Durations of unchanged files that earlier runs have read."""

    def duration(self, item: MediaItem) -> tuple[bool, float | None]:
        """Return whether the duration is stored, and the seconds; None for images and unreadable files.

        Args:
            item: as the scan found it.
        """

    def store_duration(self, item: MediaItem, read_ns: int, duration_s: float | None) -> None:
        """Store a duration.

        Args:
            item: as the scan found it, before it was read.
            read_ns: time at which reading started, in ns since 1970.
            duration_s: seconds, or None.
        """


def stored_durations(items: Iterable[MediaItem], store: DurationStore) -> dict[str, float | None]:
    """Return the durations that are stored, in seconds, by path.

    Args:
        items: the files.
        store: durations of earlier runs.
    """
    found = {}
    for item in items:
        is_stored, duration_s = store.duration(item)
        if is_stored:
            found[item.path] = duration_s
    return found


def probe_durations(
    items: Iterable[MediaItem], store: DurationStore, pool: DecodePool
) -> Iterator[tuple[str, float | None]]:
    """Open files, and store their durations for later runs.

    Args:
        items: the files.
        store: receives the durations, also those that cannot be determined, unless the next run may succeed.
        pool: opens the files.

    Yields:
        Path and seconds; None for images, for videos whose duration cannot be determined, and for files that cannot be
        read.
    """
    by_path, read_ns = {item.path: item for item in items}, time.time_ns()
    for path, outcome in pool.map_unordered(video_duration, by_path):
        item, duration_s = by_path[path], None if isinstance(outcome, MediaError) else outcome
        is_transient = isinstance(outcome, MediaError) and outcome.kind in _TRANSIENT
        if not is_transient and _is_unchanged(item):
            store.store_duration(item, read_ns, duration_s)
        yield path, duration_s


def video_duration(path: str) -> float | None:
    """Return the duration of a video in seconds; None for an image. Runs in a decoder process.

    Args:
        path: path of the file.

    Raises:
        MediaError: no frame can be decoded.
    """
    facts = probe(path)
    if facts.kind == "video" and facts.duration_s is None:  # not in the header: count the frames
        facts = probe(path, count=True)
    return facts.duration_s if facts.kind == "video" else None


def _is_unchanged(item: MediaItem) -> bool:
    try:
        now = os.stat(item.path)
    except OSError:
        return False
    return (now.st_size, now.st_mtime_ns) == (item.size, item.mtime_ns)
