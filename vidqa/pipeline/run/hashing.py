"""Second stage of a run: files -> the media_id of their content; and whether a file still has it after decoding.

A file may grow, be replaced or disappear between hashing and the last decoded frame. Rows and cache entries must refer
to the content that was actually read.
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

_ATTEMPTS = 3
#: Files that are read in parallel. A disk with moving heads gains nothing from more.
_MAX_READERS = 4


def identify(index: MediaIndex, item: MediaItem) -> tuple[MediaItem, str]:
    """Hash the content of a file, unless the index has the digest.

    Args:
        index: digests of files that were hashed before.
        item: as the scan found it, possibly hours ago.

    Returns:
        The file, with the size and time of the hashed content, and the media_id.

    Raises:
        MediaError: the file was removed, cannot be read, or keeps changing.
    """
    for _ in range(_ATTEMPTS):
        if (media_id := index.cached_media_id(item)) is not None:  # size and time of the scan are those of the content
            return item, media_id
        media_id = index.hash_file(item)
        try:
            now = os.stat(item.path)
        except OSError as error:
            raise file_error(item.path, error) from error
        if (now.st_size, now.st_mtime_ns) == (item.size, item.mtime_ns):
            return item, media_id
        item = replace(item, size=now.st_size, mtime_ns=now.st_mtime_ns)
    raise changed_error(item.path)


def hash_files(
    index: MediaIndex, items: Iterable[MediaItem], n_threads: int | None = None
) -> Iterator[tuple[MediaItem, str | ItemError]]:
    """Hash files in order, reading several ahead in parallel.

    One thread hashes 1.4 GB/s, but several readers get twice the throughput from a disk or network.

    Args:
        index: digests of files that were hashed before.
        items: as the scan found them.
        n_threads: number of reading threads; None for the default. As many files again wait for them. The threads start
            with the first file that has to be read. Ending the iteration early does not wait for them.

    Yields:
        For each file, what `identify` returns, or the file as the scan found it and the error.
    """
    n_threads = n_threads or min(_MAX_READERS, cpu_threads())
    source, more = iter(items), True
    ahead: deque[tuple[MediaItem, Future[tuple[MediaItem, str]]]] = deque()
    readers = _Readers(index, n_threads)
    try:
        while more or ahead:
            while more and len(ahead) < 2 * n_threads:
                if (item := next(source, None)) is None:
                    more = False
                elif not ahead and (media_id := index.cached_media_id(item)) is not None:
                    yield item, media_id
                else:
                    ahead.append((item, readers.submit(item)))
            if ahead:
                item, result = ahead.popleft()
                try:
                    yield result.result()
                except ItemError as error:
                    yield item, error
    finally:
        readers.close()


class _Readers:
    """Hashing threads. Not a ThreadPoolExecutor, because that would wait at exit for a read that hangs."""

    def __init__(self, index: MediaIndex, n_threads: int) -> None:
        self._index, self._n_threads = index, n_threads
        self._queue: queue.SimpleQueue[tuple[MediaItem, Future[tuple[MediaItem, str]]] | None] = queue.SimpleQueue()
        self._n_started = 0
        self._closed = False

    def submit(self, item: MediaItem) -> Future[tuple[MediaItem, str]]:
        result: Future[tuple[MediaItem, str]] = Future()
        self._queue.put((item, result))
        if self._n_started < self._n_threads:
            self._n_started += 1
            threading.Thread(target=self._run, name="vidqa-hash", daemon=True).start()
        return result

    def close(self) -> None:
        """Stop the threads without reading the files that still wait."""
        self._closed = True
        for _ in range(self._n_started):
            self._queue.put(None)

    def _run(self) -> None:
        while (request := self._queue.get()) is not None and not self._closed:
            item, result = request
            try:
                result.set_result(identify(self._index, item))
            except BaseException as error:  # noqa: BLE001 - raised by `result()` in the thread that waits for it
                result.set_exception(error)


def confirm(work: WorkItem, result: DecodedMedia | ItemError) -> tuple[WorkItem, DecodedMedia | ItemError]:
    """Check after decoding that the file still has the content that was hashed.

    Args:
        work: the file, as `identify` returned it.
        result: of decoding; a failure may also belong to other content.

    Returns:
        Work and result unchanged, or else the work without a media_id and the reason as an error. The row with that
        error is replaced as soon as the complete file can be read.
    """
    try:
        now = os.stat(work.item.path)
    except OSError as error:
        return replace(work, media_id=None), file_error(work.item.path, error)
    if (now.st_size, now.st_mtime_ns) == (work.item.size, work.item.mtime_ns):
        return work, result
    return replace(work, media_id=None), changed_error(work.item.path)


def changed_error(path: str) -> MediaError:
    """Return the error for a file that another process is writing.

    Args:
        path: of the file.
    """
    what = f"{display_path(path)}: the file changed while it was read"
    return MediaError("changed", what, hint="run again when it is complete")
