"""Pending work becomes cached features or decoded frames, in a thread that runs a bounded number of files ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_values import encoded_segment

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.errors import ItemError, MediaError
from vidqa.media.decode import decode
from vidqa.media.scan import scan
from vidqa.pipeline.run import prefetch
from vidqa.pipeline.run.hashing import hash_files
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.prefetch import _AHEAD, DecodedItem, Prefetcher, _DecodingFile
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import AnsweredSegments, EncodedItem, Question, Segment, WorkItem


class Bench:
    """Cache and index of a prefetcher."""

    def __init__(self, model: LoadedModel, folder: Path, **options: Any) -> None:
        self.model, self.options = model, RunOptions(folder, n_workers=1, **options)
        self.store, self.index = FeatureStore(folder), MediaIndex(folder)

    def prefetcher(self, work: Iterable[WorkItem | EncodedItem]) -> Prefetcher:
        return Prefetcher(work, self.model.bundle, self.store, self.index, self.options)

    def work(self, clips: Path, *, read_features: bool = True) -> list[WorkItem]:
        found = every_file(hash_files(self.index, scan([str(clips)]).items), read_features=read_features)
        return [one for one in found if isinstance(one, WorkItem)]


def arrived(prefetched: Iterable[EncodedItem | DecodedItem | None]) -> list[EncodedItem | DecodedItem]:
    """Return everything but the signs that nothing arrives."""
    return [one for one in prefetched if one is not None]


@pytest.fixture
def bench(tiny_model: LoadedModel, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tiny_model, tmp_path / "cache")
    yield made
    made.index.close()


def test_unknown_files_are_decoded_and_their_facts_stored(bench: Bench, clips: Path) -> None:
    work = bench.work(clips)
    with bench.prefetcher(work) as prefetched:
        items = arrived(prefetched)
    assert sorted(one.work.item.rel for one in items) == ["a.mp4", "b.mp4", "deeper/c.mp4"]
    for one in items:
        assert isinstance(one, DecodedItem) and one.n_parallel == 1
        (segment,) = one.media.segments
        assert segment.frames.values.shape == (8, 3, 16, 16), "preprocessed in the decoder process"  # type: ignore[union-attr]
        assert bench.index.facts(str(one.work.media_id)) == one.media.facts


@pytest.mark.parametrize("read_features", [True, False])
def test_cached_features_are_read_only_on_request(bench: Bench, clips: Path, read_features: bool) -> None:
    (work,) = bench.work(clips / "a.mp4", read_features=read_features)
    segment = encoded_segment(repeated=(False,) * 7 + (True,))
    bench.index.store_facts(str(work.media_id), segment.facts)
    bench.store.put(CacheKey(str(work.media_id), "whole", bench.model.bundle.encoder_id), segment)
    with bench.prefetcher([work]) as prefetched:
        (one,) = arrived(prefetched)
    assert isinstance(one, EncodedItem) and one.cached
    if read_features:
        assert one.segments[0].repeated == segment.repeated
        assert one.segments[0].features.tokens.shape == segment.features.tokens.shape
    else:
        assert one.segments == ()


def test_a_missing_entry_means_decoding(bench: Bench, clips: Path) -> None:
    (work,) = bench.work(clips / "a.mp4")
    bench.index.store_facts(str(work.media_id), encoded_segment().facts)
    with bench.prefetcher([work]) as prefetched:
        (one,) = arrived(prefetched)
    assert isinstance(one, DecodedItem)


@pytest.fixture
def windows(
    tiny_model: LoadedModel, tmp_path: Path, make_clip: Callable[..., Path]
) -> Iterator[tuple[Bench, WorkItem]]:
    """A video of ten windows, of which the facts are known."""
    made = Bench(tiny_model, tmp_path / "cache", segment_s=0.5)
    clip = make_clip(tmp_path / "clips" / "long.mp4", n_frames=50)
    (work,) = made.work(clip)
    made.index.store_facts(str(work.media_id), decode(str(clip)).facts)
    yield made, work
    made.index.close()


def cache(bench: Bench, work: WorkItem, starts_s: Iterable[float]) -> None:
    for start_s in starts_s:
        key = CacheKey(str(work.media_id), Segment(start_s, start_s + 0.5).key, bench.model.bundle.encoder_id)
        bench.store.put(key, encoded_segment(start_s))


def test_cached_files_arrive_in_small_parts(windows: tuple[Bench, WorkItem]) -> None:
    """Features of a long video are never in memory all at once."""
    bench, work = windows
    cache(bench, work, [i / 2 for i in range(10)])
    with bench.prefetcher([work]) as prefetched:
        parts = arrived(prefetched)
    assert all(isinstance(part, EncodedItem) and part.cached and part.n_segments == 10 for part in parts)
    assert [s.start_s for part in parts for s in part.segments] == [i / 2 for i in range(10)]  # type: ignore[union-attr]
    assert max(len(part.segments) for part in parts) <= 4  # type: ignore[union-attr]
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]  # type: ignore[union-attr]


def test_only_missing_segments_are_decoded(windows: tuple[Bench, WorkItem]) -> None:
    bench, work = windows
    cache(bench, work, [0.0, 1.0, 4.5])
    questions = (Question("a", "What?"), Question("b", "Why?"))
    known = frozenset({0.5, 1.0, 2.0})
    work = replace(work, questions=questions, answered={q.text: AnsweredSegments(10, known) for q in questions})
    with bench.prefetcher([work]) as prefetched:
        parts = arrived(prefetched)
    cached = [s.start_s for part in parts if isinstance(part, EncodedItem) for s in part.segments]
    decoded = [part.media for part in parts if isinstance(part, DecodedItem)]
    assert cached == [0.0, 4.5] and not any(part.is_last for part in parts if isinstance(part, EncodedItem))
    assert [s.start_s for media in decoded for s in media.segments] == [1.5, 2.5, 3.0, 3.5, 4.0]
    assert decoded[-1].is_last and {len(media.planned) for media in decoded} == {10}


def test_segments_that_are_all_answered_need_no_work(windows: tuple[Bench, WorkItem]) -> None:
    bench, work = windows
    known = AnsweredSegments(10, frozenset(i / 2 for i in range(10)))
    work = replace(work, questions=(Question("a", "What?"),), answered={"What?": known})
    with bench.prefetcher([work]) as prefetched:
        (part,) = arrived(prefetched)
    assert isinstance(part, EncodedItem) and part.is_last and part.segments == ()


def test_an_error_is_about_the_segments_that_are_left(
    bench: Bench, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    clip = make_clip(tmp_path / "clips" / "long.mp4", n_frames=30)
    (work,) = bench.work(clip)
    prefetcher = bench.prefetcher([])
    media = decode(str(clip), 1.0)
    prefetcher._decoding[7] = _DecodingFile(work)
    first = replace(media, segments=media.segments[:1], is_last=False)
    prefetcher._take(7, first, 2)
    prefetcher._take(7, MediaError("timeout", "hangs"), 2)
    decoded, failed = prefetcher._queue.get(), prefetcher._queue.get()
    assert isinstance(decoded, DecodedItem) and decoded.media is first
    assert isinstance(failed, EncodedItem) and failed.is_last and failed.facts == media.facts
    assert failed.failed == media.planned[1:] and failed.n_segments == 3
    clip.touch()
    prefetcher._decoding[8] = _DecodingFile(work)
    prefetcher._take(8, first, 2)
    prefetcher._take(8, first, 2)
    changed = prefetcher._queue.get()
    assert isinstance(changed, EncodedItem) and changed.work.media_id is None and changed.failed == ()
    assert prefetcher._queue.empty(), "other parts of a changed file are dropped"


def test_a_sign_that_nothing_arrives(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_IDLE_S", 0.2)
    go = threading.Event()

    def slow() -> Iterator[WorkItem]:
        go.wait(60)
        yield from ()

    with bench.prefetcher(slow()) as prefetched:
        arrivals = iter(prefetched)
        assert next(arrivals) is None
        go.set()
        assert not arrived(arrivals)


def test_cancelling_ends_the_iteration(bench: Bench) -> None:
    cancelled, go = threading.Event(), threading.Event()

    def slow() -> Iterator[WorkItem]:
        go.wait(60)
        yield from ()

    prefetcher = Prefetcher(slow(), bench.model.bundle, bench.store, bench.index, bench.options, cancelled)
    with prefetcher as prefetched:
        cancelled.set()
        assert not arrived(prefetched)
        go.set()


def test_a_file_that_fails_or_changes_is_a_failed_item(bench: Bench, clips: Path) -> None:
    (clips / "b.mp4").write_bytes((clips / "b.mp4").read_bytes()[:500])
    work = bench.work(clips)
    (clips / "deeper" / "c.mp4").write_bytes(b"other content")
    unreadable = EncodedItem(WorkItem(work[0].item, None), error=ItemError("missing", "no such file"))
    with bench.prefetcher([unreadable, *work]) as prefetched:
        items = arrived(prefetched)
    errors = {one.work.item.rel: one.error for one in items[1:] if isinstance(one, EncodedItem)}
    assert items[0] is unreadable
    assert errors.keys() == {"b.mp4", "deeper/c.mp4"} and errors["deeper/c.mp4"].kind == "changed"  # type: ignore[union-attr]
    changed = next(one for one in items if one.work.item.rel == "deeper/c.mp4")
    assert changed.work.media_id is None, "the decoded content has no media_id"


def test_an_error_of_the_thread_is_raised_in_the_main_thread(bench: Bench) -> None:
    def broken() -> Iterator[WorkItem]:
        raise ZeroDivisionError
        yield

    with bench.prefetcher(broken()) as prefetched, pytest.raises(ZeroDivisionError):
        list(prefetched)


def test_the_queue_is_bounded_and_leaving_stops_the_thread(bench: Bench, clips: Path) -> None:
    (work,) = bench.work(clips / "a.mp4")
    pulled = 0

    def many() -> Iterator[EncodedItem]:
        nonlocal pulled
        for _ in range(1000):
            pulled += 1
            yield EncodedItem(work, cached=True)

    with bench.prefetcher(many()) as prefetched:
        source = iter(prefetched)
        next(source)
        deadline = time.monotonic() + 20
        while pulled < _AHEAD + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert pulled == _AHEAD + 2, "one taken, a full queue, one in the hand of the thread"
    for _ in range(100):
        if not [t for t in threading.enumerate() if t.name == "vidqa-prefetch"]:
            return
        time.sleep(0.1)
    pytest.fail("the thread is still running")


def test_work_is_pulled_in_the_thread(bench: Bench, clips: Path, make_clip: Callable[..., Path]) -> None:
    (work,) = bench.work(clips / "a.mp4")
    names = []

    def source() -> Iterator[EncodedItem]:
        names.append(threading.current_thread().name)
        yield EncodedItem(work, cached=True)

    with bench.prefetcher(source()) as prefetched:
        assert len(arrived(prefetched)) == 1
    assert names == ["vidqa-prefetch"]
