"""Pending work becomes cached features or decoded frames, in a thread that runs a bounded number of files ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from run_values import encoded_segment

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.errors import ItemError
from vidqa.media.scan import scan
from vidqa.pipeline.run.hashing import hash_files
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.prefetch import _AHEAD, DecodedItem, Prefetcher
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import EncodedItem, WorkItem


class Bench:
    """Cache and index of a prefetcher."""

    def __init__(self, model: LoadedModel, folder: Path) -> None:
        self.model, self.options = model, RunOptions(folder, n_workers=1)
        self.store, self.index = FeatureStore(folder), MediaIndex(folder)

    def prefetcher(self, work: Iterable[WorkItem | EncodedItem]) -> Prefetcher:
        return Prefetcher(work, self.model.bundle, self.store, self.index, self.options)

    def work(self, clips: Path, *, read_features: bool = True) -> list[WorkItem]:
        found = every_file(hash_files(self.index, scan([str(clips)]).items), read_features=read_features)
        return [one for one in found if isinstance(one, WorkItem)]


@pytest.fixture
def bench(tiny_model: LoadedModel, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tiny_model, tmp_path / "cache")
    yield made
    made.index.close()


def test_unknown_files_are_decoded_and_their_facts_stored(bench: Bench, clips: Path) -> None:
    work = bench.work(clips)
    with bench.prefetcher(work) as prefetched:
        items = list(prefetched)
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
        (one,) = prefetched
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
        (one,) = prefetched
    assert isinstance(one, DecodedItem)


def test_a_file_that_fails_or_changes_is_a_failed_item(bench: Bench, clips: Path) -> None:
    (clips / "b.mp4").write_bytes((clips / "b.mp4").read_bytes()[:500])
    work = bench.work(clips)
    (clips / "deeper" / "c.mp4").write_bytes(b"other content")
    unreadable = EncodedItem(WorkItem(work[0].item, None), error=ItemError("missing", "no such file"))
    with bench.prefetcher([unreadable, *work]) as prefetched:
        items = list(prefetched)
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
        assert len(list(prefetched)) == 1
    assert names == ["vidqa-prefetch"]
