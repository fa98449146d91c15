"""Decoded frames become features: in batches, in the cache, and with all facts that rows need."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_values import FACTS, media_item

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.encoders.encoder import Encoder
from vidqa.errors import CacheError, ItemError
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.run import encode_stage
from vidqa.pipeline.run.encode_stage import encode_items
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.prefetch import DecodedItem
from vidqa.records import (
    DecodedMedia,
    DecodedSegment,
    EncodedItem,
    EncoderInput,
    Segment,
    WorkItem,
)


def decoded(name: str, repeated: tuple[bool, ...] = (False,) * 8, n_segments: int = 1, seed: int = 0) -> DecodedItem:
    rng = np.random.default_rng(seed)
    segments = []
    for i in range(n_segments):
        values = rng.standard_normal((8, 3, 16, 16)).astype(np.float32)
        frames = EncoderInput(values, np.arange(8) / 10 + i, np.array(repeated), "video")
        segments.append(DecodedSegment(Segment(float(i), i + 1.0), float(i), i + 1.0, frames))
    media_id = f"{abs(hash(name)):032d}"[:32]
    return DecodedItem(WorkItem(media_item(name), media_id), DecodedMedia(FACTS, tuple(segments), "pyav", 0.5), 2)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "cache")


def encode(
    items: Iterable[EncodedItem | DecodedItem | None],
    model: LoadedModel,
    store: FeatureStore,
    clock: StageClock | None = None,
    batch_size: int | None = None,
) -> list[EncodedItem]:
    return list(encode_items(items, model, store, clock or StageClock(), batch_size))


def test_repeated_frames_are_kept_with_the_features_and_in_the_cache(
    tiny_model: LoadedModel, store: FeatureStore
) -> None:
    repeated = (False, False, True, False, True, True, False, True)
    item = decoded("a.mp4", repeated)
    (encoded,) = encode([item], tiny_model, store)
    assert encoded.segments[0].repeated == repeated
    cached = store.get(CacheKey(str(item.work.media_id), "0.000-1.000", tiny_model.bundle.encoder_id))
    assert cached is not None and cached.repeated == repeated


def test_every_segment_has_its_own_features_times_and_entry(tiny_model: LoadedModel, store: FeatureStore) -> None:
    item = decoded("a.mp4", n_segments=3)
    (encoded,) = encode([item], tiny_model, store)
    assert [(s.start_s, s.end_s) for s in encoded.segments] == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
    for number, segment in enumerate(encoded.segments):
        assert segment.facts == FACTS
        assert segment.frame_times_s == pytest.approx([i / 10 + number for i in range(8)])
        alone = tiny_model.encoder.encode([item.media.segments[number].frames])[0]  # type: ignore[list-item]
        assert np.allclose(segment.features.tokens, alone.tokens, atol=1e-2)
        key = CacheKey(str(item.work.media_id), f"{number}.000-{number + 1}.000", tiny_model.bundle.encoder_id)
        cached = store.get(key)
        assert cached is not None and np.array_equal(cached.features.tokens, segment.features.tokens)
        assert cached.frame_times_s == segment.frame_times_s
    assert (encoded.decode_s, encoded.cached) == (0.5, False)


def test_cached_and_failed_files_pass_through(tiny_model: LoadedModel, store: FeatureStore) -> None:
    cached = EncodedItem(WorkItem(media_item("cached.mp4"), "c" * 32), cached=True)
    failed = EncodedItem(WorkItem(media_item("failed.mp4"), None), error=ItemError("unreadable", "broken"))
    encoded = encode([cached, decoded("a.mp4"), failed], tiny_model, store)
    assert encoded[0] is cached and encoded[1] is failed
    assert encoded[2].work.item.rel == "a.mp4" and encoded[2].segments


def test_batches_span_files(tiny_model: LoadedModel, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, encode_batch = [], Encoder.encode

    def counted(self: Encoder, inputs: list[EncoderInput]) -> object:
        sizes.append(len(inputs))
        return encode_batch(self, inputs)

    monkeypatch.setattr(Encoder, "encode", counted)
    items = [decoded(f"{i}.mp4", n_segments=2, seed=i) for i in range(4)]
    encoded = encode(items, tiny_model, store, batch_size=3)
    assert sizes == [4, 4] and [len(one.segments) for one in encoded] == [2] * 4


def test_an_error_of_a_batch_fails_only_the_file_that_causes_it(
    tiny_model: LoadedModel, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, encode_batch = [decoded(f"{i}.mp4", seed=i) for i in range(3)], Encoder.encode
    bad = items[1].media.segments[0].frames

    def fails(self: Encoder, inputs: list[EncoderInput]) -> object:
        if any(one is bad for one in inputs):
            raise ItemError("out_of_memory", "the device is full")
        return encode_batch(self, inputs)

    monkeypatch.setattr(Encoder, "encode", fails)
    encoded = encode(items, tiny_model, store)
    assert [one.error.kind if one.error else None for one in encoded] == [None, "out_of_memory", None]


def test_a_file_without_segments_fails(tiny_model: LoadedModel, store: FeatureStore) -> None:
    (encoded,) = encode([decoded("a.mp4", n_segments=0)], tiny_model, store)
    assert encoded.error is not None and "no segment contains a frame" in encoded.error.what


def test_changed_content_is_not_cached(tiny_model: LoadedModel, store: FeatureStore) -> None:
    item = decoded("a.mp4")
    unknown = DecodedItem(WorkItem(item.work.item, None), item.media)
    (encoded,) = encode([unknown], tiny_model, store)
    assert encoded.segments and not list(store.root.rglob("*.safetensors"))


def test_a_cache_that_cannot_be_written_ends_the_run(
    tiny_model: LoadedModel, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CacheError("disk full", hint="")

    monkeypatch.setattr(store, "put", full)
    with pytest.raises(CacheError, match="disk full"):
        encode([decoded(f"{i}.mp4") for i in range(3)], tiny_model, store, batch_size=1)


def test_features_are_written_even_if_a_later_stage_stops(tiny_model: LoadedModel, store: FeatureStore) -> None:
    items = encode_items((decoded(f"{i}.mp4", seed=i) for i in range(4)), tiny_model, store, StageClock(), 2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert len(list(store.root.rglob("*.safetensors"))) == 2


def test_throughput_and_startup_time_are_measured(tiny_model: LoadedModel, store: FeatureStore) -> None:
    def slow() -> Iterator[DecodedItem]:
        import time

        time.sleep(0.6)
        yield decoded("a.mp4", n_segments=2)

    clock = StageClock()
    encode(slow(), tiny_model, store, clock)
    meter = clock.meter
    assert (meter.decode.n, meter.decode.busy_s, meter.encode.n) == (16, 0.25, 2), "0.5 s in two parallel processes"
    assert meter.encode_operations > 0 and meter.encode.busy_s > 0
    assert 0.05 < clock.start_s < clock.seconds["decode"] - 0.4, "the wait, minus the decoding of the file itself"


def parts(name: str, n: int) -> list[DecodedItem]:
    """Return a file of `n` segments in parts."""
    whole = decoded(name, n_segments=n)
    planned = tuple(segment.segment for segment in whole.media.segments)
    media = [
        replace(whole.media, segments=(segment,), planned=planned, is_last=segment.segment == planned[-1])
        for segment in whole.media.segments
    ]
    return [replace(whole, media=one) for one in media]


def test_parts_are_passed_on_before_the_file_is_complete(tiny_model: LoadedModel, store: FeatureStore) -> None:
    taken = []

    def arrivals() -> Iterator[DecodedItem]:
        for part in parts("a.mp4", 5):
            taken.append(part)
            yield part

    stage = encode_items(arrivals(), tiny_model, store, StageClock(), 2)
    first = next(stage)
    assert len(taken) == 2 and [s.start_s for s in first.segments] == [0.0]
    rest = list(stage)
    assert [s.start_s for part in rest for s in part.segments] == [1.0, 2.0, 3.0, 4.0]
    assert [part.is_last for part in (first, *rest)] == [False] * 4 + [True]
    assert {part.n_segments for part in (first, *rest)} == {5}


def test_an_error_does_not_overtake_the_segments_before_it(tiny_model: LoadedModel, store: FeatureStore) -> None:
    first, other = parts("a.mp4", 3)[0], decoded("b.mp4")
    error = EncodedItem(first.work, error=ItemError("timeout", "hangs"), failed=first.media.planned[1:], n_segments=3)
    cached = EncodedItem(other.work, cached=True)
    encoded = encode([first, cached, error], tiny_model, store)
    assert [one.work.item.rel for one in encoded] == ["b.mp4", "a.mp4", "a.mp4"]
    assert encoded[1].segments and encoded[2] is error


def test_waiting_segments_are_encoded_while_nothing_arrives(
    tiny_model: LoadedModel, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slow file does not hold back the answers about the others."""
    monkeypatch.setattr(encode_stage, "MAX_WAIT_S", 0.0)
    go = threading.Event()

    def arrivals() -> Iterator[DecodedItem | None]:
        yield decoded("a.mp4")
        yield None
        assert go.is_set()
        yield decoded("slow.mp4")

    stage = encode_items(arrivals(), tiny_model, store, StageClock())
    assert next(stage).work.item.rel == "a.mp4"
    go.set()
    assert next(stage).work.item.rel == "slow.mp4"


def test_a_failed_segment_fails_alone(
    tiny_model: LoadedModel, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, encode_batch = parts("a.mp4", 3), Encoder.encode
    bad = items[1].media.segments[0].frames

    def fails(self: Encoder, inputs: list[EncoderInput]) -> object:
        if any(one is bad for one in inputs):
            raise ItemError("not_finite", "NaN")
        return encode_batch(self, inputs)

    monkeypatch.setattr(Encoder, "encode", fails)
    encoded = encode(items, tiny_model, store)
    assert [one.error.kind if one.error else None for one in encoded] == [None, "not_finite", None]
    assert encoded[1].failed == (Segment(1.0, 2.0),) and encoded[1].n_segments == 3 and encoded[2].is_last


def test_nothing_is_encoded_after_a_cancellation(tiny_model: LoadedModel, store: FeatureStore) -> None:
    clock = StageClock()

    def arrivals() -> Iterator[DecodedItem]:
        yield decoded("a.mp4")
        clock.cancelled.set()
        yield decoded("b.mp4")

    assert encode(arrivals(), tiny_model, store, clock, 4) == []
