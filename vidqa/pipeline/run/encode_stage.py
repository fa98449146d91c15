"""Fifth stage of a run: decoded frames -> features of every segment, encoded in batches and written to the cache.

Files whose features were cached, and failed files, pass through.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
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
    prefetched: Iterable[EncodedItem | DecodedItem],
    model: LoadedModel,
    store: FeatureStore,
    clock: StageClock,
    batch_size: int | None = None,
) -> Iterator[EncodedItem]:
    """Encode decoded files in batches that may span several files; pass all others through.

    Args:
        prefetched: files from the prefetcher.
        model: its encoder is loaded when the first decoded file arrives.
        store: receives every new segment.
        clock: receives the seconds spent in `decode` (waiting for frames) and `encode`, and the throughput of both.
        batch_size: segments per batch; None for the default.

    Yields:
        One `EncodedItem` per file, in the order in which the files become ready.

    Raises:
        CacheError: the cache cannot be written.
    """
    with _CacheWriter(store) as writer:
        yield from _encode(prefetched, model, writer, clock, batch_size or DEFAULT_BATCH)


def _encode(
    prefetched: Iterable[EncodedItem | DecodedItem],
    model: LoadedModel,
    writer: _CacheWriter,
    clock: StageClock,
    batch_size: int,
) -> Iterator[EncodedItem]:
    waiting: list[DecodedItem] = []
    n_waiting, since, started = 0, time.monotonic(), False
    arrivals = iter(prefetched)
    while True:
        with clock.stage("decode"):
            arrival = next(arrivals, None)
        if isinstance(arrival, DecodedItem) and not started:  # the time for starting processes and skipping files
            started, clock.start_s = True, max(0.0, clock.seconds["decode"] - arrival.media.seconds)
        if isinstance(arrival, EncodedItem):
            yield arrival
            continue
        if arrival is not None:
            waiting.append(arrival)
            n_waiting += len(arrival.media.segments)
        if n_waiting >= batch_size or arrival is None or time.monotonic() - since > MAX_WAIT_S:
            if waiting:
                with clock.stage("load"):
                    encoder = model.encoder
                    for kind in {decoded.media.facts.kind for decoded in waiting}:
                        encoder.session(kind)
            start = time.perf_counter()
            with clock.stage("encode"):
                done = _encode_batch(waiting, model, writer)
            _measure(waiting, model, clock, time.perf_counter() - start)
            yield from done
            waiting, n_waiting, since = [], 0, time.monotonic()
        if arrival is None:
            return


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
    """Encode and store the segments of several files."""
    # The decoder processes have already preprocessed the frames (the `transform` of the prefetcher's pool).
    inputs = [cast(EncoderInput, segment.frames) for decoded in batch for segment in decoded.media.segments]
    try:
        features = iter(model.encoder.encode(inputs) if inputs else [])
    except ItemError as error:
        if len(batch) == 1:
            return [EncodedItem(batch[0].work, error=error)]
        # Encode one file at a time, so that only the file that causes the error fails.
        return [one for decoded in batch for one in _encode_batch([decoded], model, writer)]
    return [_encoded(decoded, features, model, writer) for decoded in batch]


def _encoded(
    decoded: DecodedItem, features: Iterator[Features], model: LoadedModel, writer: _CacheWriter
) -> EncodedItem:
    """Take the features of one file from those of its batch, and store them."""
    work, media = decoded.work, decoded.media
    segments = tuple(_with_facts(decoded, segment, next(features)) for segment in media.segments)
    if not segments:
        return EncodedItem(work, error=MediaError("unreadable", f"{work.item.rel}: no segment contains a frame"))
    if work.media_id is not None:
        for before, after in zip(media.segments, segments, strict=True):
            writer.put(CacheKey(work.media_id, before.segment.key, model.bundle.encoder_id), after)
    return EncodedItem(work, segments, media.facts, decode_s=media.seconds)


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
