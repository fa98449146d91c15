"""Work -> Encoded: features of every segment, from the cache where they are, else decoded, encoded and stored.

Knows the feed, the encoder and the feature store; does not know questions or tables.
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
from vidqa.pipeline.run.prefetch import Decoded
from vidqa.records import DecodedSegment, EncodedItem, EncodedSegment, EncoderInput, Features

#: Segments that go to the encoder together unless the user says otherwise.
DEFAULT_BATCH = 16
#: A batch that is not full goes after so long, so that slow decoding does not keep the LLM idle.
MAX_WAIT_S = 5.0
#: Threads that write entries, and entries that may wait for them (4 MB each for a ViT-L and 8 frames).
_WRITERS, _UNWRITTEN = 2, 16


def encode_works(
    feed: Iterable[EncodedItem | Decoded],
    model: LoadedModel,
    store: FeatureStore,
    clock: StageClock,
    batch_size: int | None = None,
) -> Iterator[EncodedItem]:
    """Encode what arrives decoded, in batches that clips share; hand the rest through.

    Args:
        feed: where the files come from; cached and failed ones are given back as they are.
        model: its encoder is loaded when the first decoded file arrives.
        store: gets every new segment.
        clock: hears the seconds of `decode` (waiting for frames) and `encode`, and what both did.
        batch_size: segments per batch, None for the default.

    Returns:
        One `EncodedItem` a file, in the order in which files become ready.
    """
    with _Writer(store) as writer:
        yield from _encode(feed, model, writer, clock, batch_size or DEFAULT_BATCH)


def _encode(
    feed: Iterable[EncodedItem | Decoded], model: LoadedModel, writer: _Writer, clock: StageClock, full: int
) -> Iterator[EncodedItem]:
    waiting: list[Decoded] = []
    n_waiting, since, started = 0, time.monotonic(), False
    arrivals = iter(feed)
    while True:
        with clock.stage("decode"):
            arrival = next(arrivals, None)
        if isinstance(arrival, Decoded) and not started:  # processes start, and files that need nothing are passed by
            started, clock.start_s = True, max(0.0, clock.seconds["decode"] - arrival.media.seconds)
        if isinstance(arrival, EncodedItem):
            yield arrival
            continue
        if arrival is not None:
            waiting.append(arrival)
            n_waiting += len(arrival.media.segments)
        if n_waiting >= full or arrival is None or time.monotonic() - since > MAX_WAIT_S:
            if waiting:
                with clock.stage("load"):
                    encoder = model.encoder
                    for kind in {decoded.media.facts.kind for decoded in waiting}:
                        encoder.session(kind)
            start = time.perf_counter()
            with clock.stage("encode"):
                done = _encode_batch(waiting, model, writer)
            _note(waiting, model, clock, time.perf_counter() - start)
            yield from done
            waiting, n_waiting, since = [], 0, time.monotonic()
        if arrival is None:
            return


class _Writer:
    """Entries on their way to the disk, beside the encoder: waiting for the disk would cost more than a GPU's work.

    A bounded number waits, so that a slow disk slows the run down and does not fill the memory.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="vidqa-cache")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._pool.shutdown(wait=True)  # what is encoded stays, whatever ended the run
        while kind is None and self._waiting:
            self._waiting.popleft().result()

    def put(self, key: CacheKey, value: EncodedSegment) -> None:
        """Write an entry soon.

        Raises:
            CacheError: an earlier one could not be written.
        """
        self._waiting.append(self._pool.submit(self._store.put, key, value))
        while self._waiting and (len(self._waiting) > _UNWRITTEN or self._waiting[0].done()):
            self._waiting.popleft().result()


def _note(batch: Sequence[Decoded], model: LoadedModel, clock: StageClock, busy_s: float) -> None:
    """Count what a batch cost, for the rates."""
    meter = clock.meter
    for decoded in batch:
        n_frames = sum(len(segment.frames.pts_s) for segment in decoded.media.segments)
        meter.decode.add(n_frames, decoded.media.seconds / decoded.n_side_by_side)
        for segment in decoded.media.segments:
            kind = decoded.media.facts.kind
            n_groups = len(segment.frames.pts_s) / model.encoder.session(kind).n_frames
            meter.encode_operations += n_groups * model.encoder.flops(kind)
    meter.encode.add(sum(len(decoded.media.segments) for decoded in batch), busy_s)


def _encode_batch(batch: Sequence[Decoded], model: LoadedModel, writer: _Writer) -> list[EncodedItem]:
    """Encode and store the segments of some files."""
    # The feed's transform has turned frames into the encoder's input inside the decode processes.
    inputs = [cast(EncoderInput, segment.frames) for decoded in batch for segment in decoded.media.segments]
    try:
        features = iter(model.encoder.encode(inputs) if inputs else [])
    except ItemError as error:
        if len(batch) == 1:
            return [EncodedItem(batch[0].work, error=error)]
        # One of them is too much; alone, each can only fail for itself.
        return [one for decoded in batch for one in _encode_batch([decoded], model, writer)]
    return [_encoded(decoded, features, model, writer) for decoded in batch]


def _encoded(decoded: Decoded, features: Iterator[Features], model: LoadedModel, writer: _Writer) -> EncodedItem:
    """One file with its part of the batch's features, stored."""
    work, media = decoded.work, decoded.media
    segments = tuple(_with_facts(decoded, segment, next(features)) for segment in media.segments)
    if not segments:
        return EncodedItem(work, error=MediaError("unreadable", f"{work.item.rel}: no segment holds a frame"))
    if work.media_id is not None:
        for before, after in zip(media.segments, segments, strict=True):
            writer.put(CacheKey(work.media_id, before.segment.key, model.bundle.encoder_id), after)
    return EncodedItem(work, segments, decode_s=media.seconds)


def _with_facts(decoded: Decoded, segment: DecodedSegment, features: Features) -> EncodedSegment:
    frames = segment.frames
    return EncodedSegment(
        facts=decoded.media.facts,
        start_s=segment.start_s,
        end_s=segment.end_s,
        frame_times_s=tuple(float(t) for t in frames.pts_s),
        repeated=tuple(bool(r) for r in frames.repeated),
        features=features,
    )
