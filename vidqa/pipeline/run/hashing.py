"""Which content a file has, and whether it still has it: a row and a cache entry must speak of what was really read.

A file may grow, be replaced or vanish between the moment when its content is named (hashed) and the moment when its
last frame is decoded. Knows files and the index; does not know models or tables.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace

from vidqa.cache.media_index import MediaIndex
from vidqa.common.devices import cpu_threads
from vidqa.common.display import display_path
from vidqa.errors import ItemError, MediaError
from vidqa.media.files import file_error
from vidqa.records import DecodedMedia, MediaItem, WorkItem

_TRIES = 3
#: Files that are read side by side: a disk whose head must move gains nothing from more.
_MOST_READERS = 4


def identify(index: MediaIndex, item: MediaItem) -> tuple[MediaItem, str]:
    """Name the content of a file.

    Args:
        index: remembers contents.
        item: as the scan found it, perhaps hours ago.

    Returns:
        The file with the size and time that belong to the content, and the content's media_id.

    Raises:
        MediaError: gone, not readable, or it keeps changing.
    """
    for _ in range(_TRIES):
        if (known := index.cached_media_id(item)) is not None:  # size and time of the scan are those of the content
            return item, known
        media_id = index.hash_file(item)
        try:
            now = os.stat(item.path)
        except OSError as error:
            raise file_error(item.path, error) from error
        if (now.st_size, now.st_mtime_ns) == (item.size, item.mtime_ns):
            return item, media_id
        item = replace(item, size=now.st_size, mtime_ns=now.st_mtime_ns)
    raise changed(item.path)


def identify_all(
    index: MediaIndex, items: Iterable[MediaItem], n_threads: int | None = None
) -> Iterator[tuple[MediaItem, str | ItemError]]:
    """Name the contents of files, in their order, reading some ahead side by side.

    One thread hashes 1.4 GB a second, and has half of what a disk or a network gives several.

    Args:
        index: remembers contents.
        items: as the scan found them.
        n_threads: that read unknown files, None for the default; as many files again wait for them. They start with the
            first such file, and whoever ends the iteration early does not wait for them.

    Returns:
        What `identify` gives or raises, for each file; the file as the scan found it where it raises.
    """
    n_threads = n_threads or min(_MOST_READERS, cpu_threads())
    source, more = iter(items), True
    ahead: deque[tuple[MediaItem, Future[tuple[MediaItem, str]]]] = deque()
    readers = _Readers(index, n_threads)
    try:
        while more or ahead:
            while more and len(ahead) < 2 * n_threads:
                if (item := next(source, None)) is None:
                    more = False
                elif not ahead and (known := index.cached_media_id(item)) is not None:
                    yield item, known
                else:
                    ahead.append((item, readers.read(item)))
            if ahead:
                item, found = ahead.popleft()
                try:
                    yield found.result()
                except ItemError as error:
                    yield item, error
    finally:
        readers.close()


class _Readers:
    """Threads that name contents. Not an executor of the library: that one waits for a read that hangs."""

    def __init__(self, index: MediaIndex, n_threads: int) -> None:
        self._index, self._n_threads = index, n_threads
        self._asked: queue.SimpleQueue[tuple[MediaItem, Future[tuple[MediaItem, str]]] | None] = queue.SimpleQueue()
        self._n_started = 0
        self._closed = False

    def read(self, item: MediaItem) -> Future[tuple[MediaItem, str]]:
        """`identify`, soon."""
        found: Future[tuple[MediaItem, str]] = Future()
        self._asked.put((item, found))
        if self._n_started < self._n_threads:
            self._n_started += 1
            threading.Thread(target=self._run, name="vidqa-hash", daemon=True).start()
        return found

    def close(self) -> None:
        """No more files; those that wait are not read."""
        self._closed = True
        for _ in range(self._n_started):
            self._asked.put(None)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None and not self._closed:
            item, found = asked
            try:
                found.set_result(identify(self._index, item))
            except BaseException as error:  # belongs to whoever waits for it
                found.set_exception(error)


def confirm(work: WorkItem, result: DecodedMedia | ItemError) -> tuple[WorkItem, DecodedMedia | ItemError]:
    """What was decoded, if the file is still the one whose content was named; else why it does not count.

    Args:
        work: the file, as `identify` gave it.
        result: of decoding it; also a failure may be that of another content.

    Returns:
        Work without a media_id where the content is not known any more: its row says so, and gives way to true ones
        as soon as the file can be read whole.
    """
    try:
        now = os.stat(work.item.path)
    except OSError as error:
        return replace(work, media_id=None), file_error(work.item.path, error)
    if (now.st_size, now.st_mtime_ns) == (work.item.size, work.item.mtime_ns):
        return work, result
    return replace(work, media_id=None), changed(work.item.path)


def changed(path: str) -> MediaError:
    """A file that somebody writes."""
    return MediaError(
        "changed", f"{display_path(path)}: the file changed while it was read", hint="run again when it is complete"
    )
