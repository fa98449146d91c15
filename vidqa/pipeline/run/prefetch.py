"""Work -> its features from the cache, or its decoded frames: what can be prepared while the models compute.

A thread of its own hashes files, reads the cache and keeps the decode processes busy; a bounded queue hands the results
over, so that it runs ahead of the models by a fixed number of files and memory does not grow with the archive.
Knows media and cache; does not know models, questions or tables.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
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

#: Files that may wait in the queue. Each holds at most its own features or prepared frames.
_AHEAD = 8


@dataclass(frozen=True)
class Decoded:
    """A file whose frames wait for the encoder."""

    work: WorkItem
    media: DecodedMedia
    n_side_by_side: int = 1  # processes that decode beside each other


@dataclass(frozen=True)
class _End:
    """The last thing in the queue: no more work, or what stopped the thread."""

    error: BaseException | None = None


class Stopped(Exception):
    """Raised inside the thread when nobody wants its results any more."""


class Prefetcher:
    """Iterate over it to get `EncodedItem` (cached, or failed) and `Decoded`, in the order in which they are ready.

    Args:
        works: gives the iterator of work; called in the thread, and so may open what belongs to one thread. An
            `EncodedItem` among it (a file that could not be read) is handed through.
        bundle: says how frames are chosen and prepared, and which features are asked for.
        store: the feature cache.
        index: knows the facts of contents that were decoded before, and learns those of new ones.
        options: how the run is done.
    """

    def __init__(
        self,
        works: Callable[[], Iterable[WorkItem | EncodedItem]],
        bundle: Bundle,
        store: FeatureStore,
        index: MediaIndex,
        options: RunOptions,
    ) -> None:
        self._works, self._bundle, self._store = works, bundle, store
        self._index, self._options = index, options
        self._queue: queue.Queue[EncodedItem | Decoded | _End] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._waiting: dict[int, WorkItem] = {}
        self._pool: DecodePool | None = None
        self._thread = threading.Thread(target=self._run, name="vidqa-feed", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=1)
        if self._thread.is_alive() and self._pool is not None:  # it waits for a file that takes long: give that up
            self._pool.close()

    def __iter__(self) -> Iterator[EncodedItem | Decoded]:
        while True:
            try:
                got = self._queue.get(timeout=0.2)
            except queue.Empty:  # short waits, so that Ctrl-C is heard on every system
                continue
            if isinstance(got, _End):
                if got.error is not None:
                    raise got.error
                return
            yield got

    def _run(self) -> None:
        end = _End()
        try:
            self._feed()
        except Stopped:
            return
        except BaseException as error:  # whatever it is belongs to the thread that iterates, and is raised there
            end = _End(error)
        try:
            self._put(end)
        except Stopped:
            return

    def _feed(self) -> None:
        jobs = self._jobs()
        first = next(jobs, None)
        if first is None:  # all of it cached: no decode process is started
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
                work, result = confirm(self._waiting.pop(cast(int, job.tag)), outcome)
                if isinstance(result, ItemError):
                    self._put(EncodedItem(work, error=result))
                    continue
                if work.media_id is not None:
                    self._index.store_facts(work.media_id, result.facts)
                self._put(Decoded(work, result, n_workers))

    def _jobs(self) -> Iterator[DecodeJob]:
        """Decode jobs; what is cached goes straight into the queue."""
        sampling = self._bundle.spec.encoders.video.sampling
        for number, work in enumerate(self._works()):
            if isinstance(work, EncodedItem):
                self._put(work)
                continue
            cached = self._cached(work)
            if cached is not None:
                self._put(EncodedItem(work, cached, cached=True))
                continue
            self._waiting[number] = work
            yield DecodeJob(
                path=work.item.path, segments=work.segments or self._options.segment_s, sampling=sampling, tag=number
            )

    def _cached(self, work: WorkItem) -> tuple[EncodedSegment, ...] | None:
        """All segments of a file, or None if one of them is not in the cache. Not read where nothing is asked."""
        facts = self._index.facts(work.media_id) if work.media_id else None
        if facts is None or work.media_id is None:
            return None
        keys = [
            CacheKey(work.media_id, segment.key, self._bundle.encoder_id)
            for segment in plan_segments(facts, work.segments or self._options.segment_s)
        ]
        if not work.read_features:
            return () if all(map(self._store.has, keys)) else None
        found = []
        for key in keys:
            entry = self._store.get(key)
            if entry is None:
                return None
            found.append(entry)
        return tuple(found)

    def _put(self, value: EncodedItem | Decoded | _End) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(value, timeout=0.2)
                return
            except queue.Full:
                continue
        raise Stopped
