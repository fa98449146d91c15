"""Fifth stage of a run: decoded frames -> features of every segment, encoded in batches and written to the cache.

Files arrive in parts, and each part is passed on as soon as it is encoded. Cached parts and errors pass through.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.common.display import display_path
from vidqa.errors import ItemError, MediaError
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.prefetch import DecodedItem
from vidqa.records import DecodedSegment, EncodedItem, EncodedSegment, EncoderInput, Features

#: Segments per batch, unless the user sets a batch size.
DEFAULT_BATCH = 16
#: An incomplete batch is encoded after this time, so that slow decoding does not keep the LLM idle.
MAX_WAIT_S = 5.0
#: Threads that write cache entries, and entries that may wait for them (4 MB each for a ViT-L and 8 frames).
_WRITERS, _MAX_UNWRITTEN = 2, 16


def encode_items(
    prefetched: Iterable[EncodedItem | DecodedItem | None],
    model: LoadedModel,
    store: FeatureStore,
    clock: StageClock,
    batch_size: int | None = None,
) -> Iterator[EncodedItem]:
    """Encode decoded parts of files in batches that may span several files; pass all others through.

    Args:
        prefetched: from the prefetcher; None while nothing arrives.
        model: its encoder is loaded when the first decoded file arrives.
        store: receives every new segment.
        clock: receives the seconds spent in `decode` (waiting for frames) and `encode`, and the throughput of both.
            When it is cancelled, nothing more is encoded.
        batch_size: segments per batch; None for the default.

    Yields:
        The parts of each file in order; parts of several files alternate.

    Raises:
        CacheError: the cache cannot be written.
    """
    with _CacheWriter(store) as writer:
        yield from _encode(prefetched, model, writer, clock, batch_size or DEFAULT_BATCH)


def _encode(
    prefetched: Iterable[EncodedItem | DecodedItem | None],
    model: LoadedModel,
    writer: _CacheWriter,
    clock: StageClock,
    batch_size: int,
) -> Iterator[EncodedItem]:
    waiting: list[DecodedItem] = []
    since, started, more = 0.0, False, True
    arrivals = iter(prefetched)
    while more:
        arrival: EncodedItem | DecodedItem | None = None
        with clock.stage("decode"):
            try:
                arrival = next(arrivals)
            except StopIteration:
                more = False
        if clock.cancelled.is_set():
            return
        if isinstance(arrival, DecodedItem):
            if not started:  # the time for starting processes and skipping files
                started, clock.start_s = True, max(0.0, clock.seconds["decode"] - arrival.media.seconds)
            since = since if waiting else time.monotonic()
            waiting.append(arrival)
        # An error of a file must not overtake its segments.
        must_flush = isinstance(arrival, EncodedItem) and any(one.work.item == arrival.work.item for one in waiting)
        n_waiting = sum(len(one.media.segments) for one in waiting)
        is_due = n_waiting >= batch_size or not more or must_flush or time.monotonic() - since > MAX_WAIT_S
        if waiting and is_due:
            yield from _encode_timed(waiting, model, writer, clock)
            waiting = []
        if isinstance(arrival, EncodedItem):
            yield arrival


def _encode_timed(
    batch: Sequence[DecodedItem], model: LoadedModel, writer: _CacheWriter, clock: StageClock
) -> list[EncodedItem]:
    """Encode a batch and measure the time."""
    with clock.stage("load"):
        encoder = model.encoder
        for kind in {decoded.media.facts.kind for decoded in batch}:
            encoder.session(kind)
    start = time.perf_counter()
    with clock.stage("encode"):
        done = _encode_batch(batch, model, writer)
    _measure(batch, model, clock, time.perf_counter() - start)
    return done


class _CacheWriter:
    """Writes cache entries in threads, because waiting for the disk would take longer than encoding on a GPU.

    The number of waiting entries is bounded: a slow disk slows the run down instead of filling the memory.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="vidqa-cache")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> _CacheWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._pool.shutdown(wait=True)  # also after an error: encoded features are kept
        while kind is None and self._pending:
            self._pending.popleft().result()

    def put(self, key: CacheKey, value: EncodedSegment) -> None:
        """Schedule an entry to be written.

        Raises:
            CacheError: an earlier entry could not be written.
        """
        self._pending.append(self._pool.submit(self._store.put, key, value))
        while self._pending and (len(self._pending) > _MAX_UNWRITTEN or self._pending[0].done()):
            self._pending.popleft().result()


def _measure(batch: Sequence[DecodedItem], model: LoadedModel, clock: StageClock, busy_s: float) -> None:
    """Add a batch to the throughput of decoding and encoding."""
    meter = clock.meter
    for decoded in batch:
        n_frames = sum(len(segment.frames.pts_s) for segment in decoded.media.segments)
        meter.decode.add(n_frames, decoded.media.seconds / decoded.n_parallel)
        for segment in decoded.media.segments:
            kind = decoded.media.facts.kind
            n_calls = len(segment.frames.pts_s) / model.encoder.session(kind).n_frames
            meter.encode_operations += n_calls * model.encoder.flops(kind)
    meter.encode.add(sum(len(decoded.media.segments) for decoded in batch), busy_s)


def _encode_batch(batch: Sequence[DecodedItem], model: LoadedModel, writer: _CacheWriter) -> list[EncodedItem]:
    """Encode and store the segments of several parts of files."""
    # The decoder processes have already preprocessed the frames (the `transform` of the prefetcher's pool).
    inputs = [cast(EncoderInput, segment.frames) for decoded in batch for segment in decoded.media.segments]
    try:
        features = iter(model.encoder.encode(inputs) if inputs else [])
    except ItemError as error:
        if len(batch) == 1:
            return [_encoded(batch[0], (), error)]
        # Encode one part at a time, so that only the one that causes the error fails.
        return [one for decoded in batch for one in _encode_batch([decoded], model, writer)]
    return [_stored(decoded, features, model, writer) for decoded in batch]


def _stored(
    decoded: DecodedItem, features: Iterator[Features], model: LoadedModel, writer: _CacheWriter
) -> EncodedItem:
    """Take the features of one part from those of its batch, and store them."""
    work, media = decoded.work, decoded.media
    if not media.planned and not media.segments:
        error = MediaError("unreadable", f"{display_path(work.item.path)}: no segment contains a frame")
        return EncodedItem(work, error=error)
    segments = tuple(_with_facts(decoded, segment, next(features)) for segment in media.segments)
    if work.media_id is not None:
        for before, after in zip(media.segments, segments, strict=True):
            writer.put(CacheKey(work.media_id, before.segment.key, model.bundle.encoder_id), after)
    return _encoded(decoded, segments)


def _encoded(decoded: DecodedItem, segments: tuple[EncodedSegment, ...], error: ItemError | None = None) -> EncodedItem:
    media, n_segments = decoded.media, len(decoded.media.planned or decoded.media.segments)
    failed = tuple(segment.segment for segment in media.segments) if error is not None and n_segments > 1 else ()
    return EncodedItem(
        decoded.work,
        segments,
        media.facts,
        error,
        failed,
        decode_s=media.seconds,
        n_segments=n_segments,
        is_last=media.is_last,
    )


def _with_facts(decoded: DecodedItem, segment: DecodedSegment, features: Features) -> EncodedSegment:
    frames = segment.frames
    return EncodedSegment(
        facts=decoded.media.facts,
        start_s=segment.start_s,
        end_s=segment.end_s,
        frame_times_s=tuple(float(t) for t in frames.pts_s),
        repeated=tuple(bool(r) for r in frames.repeated),
        features=features,
    )
