"""Fourth stage of a run: pending work -> cached features or decoded frames, prepared while the models compute.

A separate thread pulls work from the stages before it (so hashing and the pending stage run in that thread), reads the
cache and keeps the decoder processes busy. Results go through a bounded queue, so the stage runs a fixed number of
files ahead and memory does not grow with the number of files.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Self, cast

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.common.devices import cpu_threads
from vidqa.encoders.preprocess import preprocess
from vidqa.errors import ItemError
from vidqa.media.segments import plan_segments
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
from vidqa.model.bundle.bundle import Bundle
from vidqa.pipeline.run.hashing import confirm
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import DecodedMedia, EncodedItem, EncodedSegment, MediaFacts, Segment, WorkItem

#: Capacity of the queue in parts of files, each of which has the features or preprocessed frames of a few segments.
_AHEAD = 8
_POLL_S = 0.2


#: Cached segments per part of a file.
_CACHED_PER_PART = 4
#: Wait for a result after which the iteration yields None.
_IDLE_S = 1.0


@dataclass(frozen=True)
class DecodedItem:
    """A part of a file whose frames are ready for the encoder."""

    work: WorkItem
    media: DecodedMedia
    n_parallel: int = 1  # number of decoder processes


@dataclass
class _DecodingFile:
    """A file in a decoder process."""

    work: WorkItem
    planned: tuple[Segment, ...] = ()  # all segments of the file, once they are determined
    done: set[Segment] = field(default_factory=set)  # decoded, cached, or answered by an earlier run
    facts: MediaFacts | None = None


@dataclass(frozen=True)
class _End:
    """Last entry of the queue: the end of the work, or the error that stopped the thread."""

    error: BaseException | None = None


class _Stopped(Exception):
    """Raised in the thread when its results are no longer needed."""


class Prefetcher:
    """Iterable of `EncodedItem` (cached or failed) and `DecodedItem`, in the order in which they become ready.

    Files arrive in parts, and parts of several files alternate. While nothing arrives, None is yielded every second.
    Use it as a context manager; leaving the block stops the thread.

    Args:
        work: pulled in the thread of the prefetcher. Each `EncodedItem` in it (an unreadable file) is passed through.
        bundle: defines frame sampling, preprocessing and the encoder_id.
        store: the feature cache.
        index: facts of files that were decoded before; facts of new files are added.
        options: of the run.
        cancelled: ends the iteration when it is set; None if nothing does.
    """

    def __init__(
        self,
        work: Iterable[WorkItem | EncodedItem],
        bundle: Bundle,
        store: FeatureStore,
        index: MediaIndex,
        options: RunOptions,
        cancelled: threading.Event | None = None,
    ) -> None:
        self._work, self._bundle, self._store = work, bundle, store
        self._index, self._options = index, options
        self._queue: queue.Queue[EncodedItem | DecodedItem | _End] = queue.Queue(_AHEAD)
        self._stop, self._cancelled = threading.Event(), cancelled or threading.Event()
        self._decoding: dict[int, _DecodingFile] = {}  # by tag of the job
        self._pool: DecodePool | None = None
        self._thread = threading.Thread(target=self._run, name="vidqa-prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=1)
        if self._thread.is_alive() and self._pool is not None:  # it waits for a slow file: abandon that
            self._pool.close()

    def __iter__(self) -> Iterator[EncodedItem | DecodedItem | None]:
        waited_s = 0.0
        while not self._is_stopped():
            try:
                entry = self._queue.get(timeout=_POLL_S)
            except queue.Empty:  # a short timeout, so that Ctrl-C is handled on every system
                waited_s += _POLL_S
                if waited_s >= _IDLE_S:
                    waited_s = 0.0
                    yield None
                continue
            if isinstance(entry, _End):
                if entry.error is not None:
                    raise entry.error
                return
            waited_s = 0.0
            yield entry

    def _run(self) -> None:
        end = _End()
        try:
            self._prefetch()
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - raised by `__iter__` in the main thread
            end = _End(error)
        try:
            self._put(end)
        except _Stopped:
            return

    def _prefetch(self) -> None:
        jobs = self._decode_jobs()
        first = next(jobs, None)
        if first is None:  # everything is cached: no decoder process is started
            return
        encoders = self._bundle.spec.encoders
        transform = partial(preprocess, image=encoders.image.preprocess, video=encoders.video.preprocess)
        n_workers = self._options.n_workers or max(2, cpu_threads())  # one slow file does not stop the others
        with DecodePool(
            n_workers=n_workers,
            timeout_s=self._options.timeout_s,
            memory_bytes=self._options.memory_bytes,
            transform=transform,
        ) as self._pool:
            for job, outcome in self._pool.stream(chain([first], jobs)):
                self._take(cast(int, job.tag), outcome, n_workers)

    def _take(self, tag: int, outcome: DecodedMedia | ItemError, n_workers: int) -> None:
        """Pass a decoded part on, or an error as that of all segments that are not decoded."""
        file = self._decoding.get(tag)
        if file is None:  # the file has changed while it was decoded: its other parts are dropped
            return
        work, result = confirm(file.work, outcome)
        if work.media_id != file.work.media_id or isinstance(result, ItemError) or result.is_last:
            del self._decoding[tag]
        if isinstance(result, ItemError):
            left = tuple(s for s in file.planned if s not in file.done) if work.media_id == file.work.media_id else ()
            facts, n_segments = (file.facts, len(file.planned)) if left else (None, None)
            self._put(EncodedItem(work, (), facts, result, left, n_segments=n_segments))
            return
        if work.media_id is not None and result.facts != file.facts:
            self._index.store_facts(work.media_id, result.facts)
        file.planned, file.facts = result.planned, result.facts
        file.done.update(segment.segment for segment in result.segments)
        self._put(DecodedItem(work, result, n_workers))

    def _decode_jobs(self) -> Iterator[DecodeJob]:
        """Yield a job for each file that has to be decoded; put cached files straight into the queue."""
        sampling = self._bundle.spec.encoders.video.sampling
        for number, work in enumerate(self._work):
            if isinstance(work, EncodedItem):
                self._put(work)
                continue
            skip = self._skip_cached(work)
            if skip is None:
                continue
            self._decoding[number] = _DecodingFile(work, done=set(skip))
            segments = work.segments or self._options.segment_s
            yield DecodeJob(work.item.path, segments, sampling, skip, tag=number)

    def _skip_cached(self, work: WorkItem) -> frozenset[Segment] | None:
        """Put the cached segments of a file into the queue. Segments that are answered already are skipped.

        Returns:
            The segments that need not be decoded; None if that is all of them.
        """
        facts = self._index.facts(work.media_id) if work.media_id else None
        if facts is None or work.media_id is None:
            return frozenset()
        try:
            planned = plan_segments(facts, work.segments or self._options.segment_s)
        except ItemError as error:
            self._put(EncodedItem(work, error=error))
            return None
        n = len(planned)
        wanted = [segment for segment in planned if work.needs(segment.start_s, n)]
        keys = {segment: CacheKey(work.media_id, segment.key, self._bundle.encoder_id) for segment in wanted}
        missing = {segment for segment, key in keys.items() if not self._store.has(key)}
        part: list[EncodedSegment] = []
        for segment in wanted if work.read_features else ():
            if segment in missing or (entry := self._store.get(keys[segment])) is None:
                missing.add(segment)
                continue
            if len(part) == _CACHED_PER_PART:
                self._put(EncodedItem(work, tuple(part), facts, cached=True, n_segments=n, is_last=False))
                part = []
            part.append(entry)
        if part or not missing:
            self._put(EncodedItem(work, tuple(part), facts, cached=True, n_segments=n, is_last=not missing))
        return frozenset(segment for segment in planned if segment not in missing) if missing else None

    def _is_stopped(self) -> bool:
        return self._stop.is_set() or self._cancelled.is_set()

    def _put(self, value: EncodedItem | DecodedItem | _End) -> None:
        while not self._is_stopped():
            try:
                self._queue.put(value, timeout=_POLL_S)
                return
            except queue.Full:
                continue
        raise _Stopped
