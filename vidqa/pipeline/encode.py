"""Work -> Encoded: features of every segment, from the cache where they are, else decoded, encoded and stored.

Knows the feed, the encoder and the feature store; does not know questions or tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vidqa.cache.key import CacheKey
from vidqa.cache.store import FeatureStore
from vidqa.errors import MediaError
from vidqa.pipeline.feed import Decoded
from vidqa.pipeline.loaded import LoadedModel
from vidqa.pipeline.options import Encoded, Work
from vidqa.pipeline.progress import StageClock
from vidqa.records import DecodedSegment, EncodedSegment, Features

#: Segments that go to the encoder together unless the user says otherwise.
DEFAULT_BATCH = 16


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
    n_waiting = 0
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
        if n_waiting >= full or arrival is None:
            with clock.stage("encode"):
                done = _encode_batch(waiting, model, store)
            yield from done
            waiting, n_waiting = [], 0
        if arrival is None:
            return


def _encode_batch(batch: Sequence[Decoded], model: LoadedModel, store: FeatureStore) -> list[Encoded]:
    """Encode and store the segments of some files."""
    inputs = [segment.frames for decoded in batch for segment in decoded.media.segments]
    features = iter(model.encoder.encode(inputs) if inputs else [])
    done = []
    for decoded in batch:
        media = decoded.media
        segments = tuple(_with_facts(decoded, segment, next(features)) for segment in media.segments)
        if not segments:
            error = MediaError("unreadable", f"{decoded.work.item.rel}: no segment holds a frame")
            done.append(Encoded(decoded.work, error=error))
            continue
        _store(decoded.work, media.segments, segments, store, model.bundle.encoder_id)
        done.append(Encoded(decoded.work, segments))
    return done


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


def _store(
    work: Work,
    decoded: Sequence[DecodedSegment],
    encoded: Sequence[EncodedSegment],
    store: FeatureStore,
    encoder_id: str,
) -> None:
    if work.media_id is None:
        return
    for before, after in zip(decoded, encoded, strict=True):
        store.put(CacheKey(work.media_id, before.segment.key, encoder_id), after)
