"""Work -> Encoded: features of every segment, from the cache where they are, else decoded, encoded and stored.

Knows the feed, the encoder and the feature store; does not know questions or tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from vidqa.cache.key import CacheKey
from vidqa.cache.store import FeatureStore
from vidqa.errors import ItemError, MediaError
from vidqa.pipeline.feed import Decoded
from vidqa.pipeline.loaded import LoadedModel
from vidqa.pipeline.options import Encoded
from vidqa.pipeline.progress import StageClock
from vidqa.records import DecodedSegment, EncodedSegment, EncoderInput, Features

#: Segments that go to the encoder together unless the user says otherwise.
DEFAULT_BATCH = 16
#: A batch that is not full goes after so long, so that slow decoding does not keep the LLM idle.
MAX_WAIT_S = 5.0


def encode_works(
    feed: Iterable[Encoded | Decoded],
    model: LoadedModel,
    store: FeatureStore,
    clock: StageClock,
    batch_size: int | None = None,
) -> Iterator[Encoded]:
    """Encode what arrives decoded, in batches that clips share; hand the rest through.

    Args:
        feed: where the files come from; cached and failed ones are given back as they are.
        model: its encoder is loaded when the first decoded file arrives.
        store: gets every new segment.
        clock: hears the seconds of `decode` (waiting for frames) and `encode`.
        batch_size: segments per batch, None for the default.

    Returns:
        One `Encoded` a file, in the order in which files become ready.
    """
    full = batch_size or DEFAULT_BATCH
    waiting: list[Decoded] = []
    n_waiting, since = 0, time.monotonic()
    arrivals = iter(feed)
    while True:
        with clock.stage("decode"):
            arrival = next(arrivals, None)
        if isinstance(arrival, Encoded):
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
            with clock.stage("encode"):
                done = _encode_batch(waiting, model, store)
            yield from done
            waiting, n_waiting, since = [], 0, time.monotonic()
        if arrival is None:
            return


def _encode_batch(batch: Sequence[Decoded], model: LoadedModel, store: FeatureStore) -> list[Encoded]:
    """Encode and store the segments of some files."""
    # The feed's transform has turned frames into the encoder's input inside the decode processes.
    inputs = [cast(EncoderInput, segment.frames) for decoded in batch for segment in decoded.media.segments]
    try:
        features = iter(model.encoder.encode(inputs) if inputs else [])
    except ItemError as error:
        if len(batch) == 1:
            return [Encoded(batch[0].work, error=error)]
        # One of them is too much; alone, each can only fail for itself.
        return [one for decoded in batch for one in _encode_batch([decoded], model, store)]
    return [_encoded(decoded, features, model, store) for decoded in batch]


def _encoded(decoded: Decoded, features: Iterator[Features], model: LoadedModel, store: FeatureStore) -> Encoded:
    """One file with its part of the batch's features, stored."""
    work, media = decoded.work, decoded.media
    segments = tuple(_with_facts(decoded, segment, next(features)) for segment in media.segments)
    if not segments:
        return Encoded(work, error=MediaError("unreadable", f"{work.item.rel}: no segment holds a frame"))
    if work.media_id is not None:
        for before, after in zip(media.segments, segments, strict=True):
            store.put(CacheKey(work.media_id, before.segment.key, model.bundle.encoder_id), after)
    return Encoded(work, segments, decode_s=media.seconds)


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
