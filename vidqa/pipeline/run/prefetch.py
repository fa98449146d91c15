"""Fourth stage of a run: pending work -> cached features or decoded frames, prepared while the models compute.

A separate thread pulls work from the stages before it (so hashing and the pending stage run in that thread), reads the
cache and keeps the decoder processes busy. Results go through a bounded queue, so the stage runs a fixed number of
files ahead and memory does not grow with the number of files.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from vidqa.records import DecodedMedia, EncodedItem, EncodedSegment, WorkItem

#: Capacity of the queue in files. Each holds at most its own features or preprocessed frames.
_AHEAD = 8


@dataclass(frozen=True)
class DecodedItem:
    """A file whose frames are ready for the encoder."""

    work: WorkItem
    media: DecodedMedia
    n_parallel: int = 1  # number of decoder processes


@dataclass(frozen=True)
class _End:
    """Last entry of the queue: the end of the work, or the error that stopped the thread."""

    error: BaseException | None = None


class _Stopped(Exception):
    """Raised in the thread when its results are no longer needed."""


class Prefetcher:
    """Iterable of `EncodedItem` (cached or failed) and `DecodedItem`, in the order in which they become ready.

    Use it as a context manager; leaving the block stops the thread.

    Args:
        work: pulled in the thread of the prefetcher. Each `EncodedItem` in it (an unreadable file) is passed through.
        bundle: defines frame sampling, preprocessing and the encoder_id.
        store: the feature cache.
        index: facts of files that were decoded before; facts of new files are added.
        options: of the run.
    """

    def __init__(
        self,
        work: Iterable[WorkItem | EncodedItem],
        bundle: Bundle,
        store: FeatureStore,
        index: MediaIndex,
        options: RunOptions,
    ) -> None:
        self._work, self._bundle, self._store = work, bundle, store
        self._index, self._options = index, options
        self._queue: queue.Queue[EncodedItem | DecodedItem | _End] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._decoding: dict[int, WorkItem] = {}
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

    def __iter__(self) -> Iterator[EncodedItem | DecodedItem]:
        while True:
            try:
                entry = self._queue.get(timeout=0.2)
            except queue.Empty:  # a short timeout, so that Ctrl-C is handled on every system
                continue
            if isinstance(entry, _End):
                if entry.error is not None:
                    raise entry.error
                return
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
        n_workers = self._options.n_workers or cpu_threads()
        with DecodePool(
            n_workers=n_workers,
            timeout_s=self._options.timeout_s,
            memory_bytes=self._options.memory_bytes,
            transform=transform,
        ) as self._pool:
            for job, outcome in self._pool.run(chain([first], jobs)):
                work, result = confirm(self._decoding.pop(cast(int, job.tag)), outcome)
                if isinstance(result, ItemError):
                    self._put(EncodedItem(work, error=result))
                    continue
                if work.media_id is not None:
                    self._index.store_facts(work.media_id, result.facts)
                self._put(DecodedItem(work, result, n_workers))

    def _decode_jobs(self) -> Iterator[DecodeJob]:
        """Yield a job for each file that has to be decoded; put cached files straight into the queue."""
        sampling = self._bundle.spec.encoders.video.sampling
        for number, work in enumerate(self._work):
            if isinstance(work, EncodedItem):
                self._put(work)
                continue
            if (cached := self._cached(work)) is not None:
                self._put(cached)
                continue
            self._decoding[number] = work
            yield DecodeJob(
                path=work.item.path, segments=work.segments or self._options.segment_s, sampling=sampling, tag=number
            )

    def _cached(self, work: WorkItem) -> EncodedItem | None:
        """Return a file with its cached segments, omitted if they need not be read; None if one is missing."""
        facts = self._index.facts(work.media_id) if work.media_id else None
        if facts is None or work.media_id is None:
            return None
        try:
            planned = plan_segments(facts, work.segments or self._options.segment_s)
        except ItemError as error:
            return EncodedItem(work, error=error)
        keys = [CacheKey(work.media_id, segment.key, self._bundle.encoder_id) for segment in planned]
        if not work.read_features:
            return EncodedItem(work, (), facts, cached=True) if all(map(self._store.has, keys)) else None
        segments: list[EncodedSegment] = []
        for key in keys:
            entry = self._store.get(key)
            if entry is None:
                return None
            segments.append(entry)
        return EncodedItem(work, tuple(segments), facts, cached=True)

    def _put(self, value: EncodedItem | DecodedItem | _End) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(value, timeout=0.2)
                return
            except queue.Full:
                continue
        raise _Stopped
