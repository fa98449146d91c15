"""Files arrive in parts, are counted and logged once, and a signal does not wait for a long batch."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from run_values import media_item

from vidqa.media.scan import scan
from vidqa.pipeline.monitor.event_log import EventLog
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.monitor.signals import WORK_THREADS
from vidqa.pipeline.run import feature_stages
from vidqa.pipeline.run.feature_stages import _without_notes, encode_files, in_background
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.run_context import RunContext
from vidqa.records import EncodedItem, WorkItem

NOTE = "truncated: 1.0 of 9.0 s readable"


@pytest.fixture
def long_and_short(tmp_path: Path, make_clip: Callable[..., Path]) -> Path:
    make_clip(tmp_path / "clips" / "long.mp4", n_frames=40)
    make_clip(tmp_path / "clips" / "short.mp4")
    return tmp_path / "clips"


def run_all(run: RunContext, folder: Path) -> dict[str, list[EncodedItem]]:
    found: dict[str, list[EncodedItem]] = {}
    for part in encode_files(run, scan([str(folder)]).items, partial(every_file)):
        found.setdefault(part.work.item.rel, []).append(part)
    return found


def test_each_file_is_counted_once(make_run: Callable[..., RunContext], long_and_short: Path) -> None:
    run, log = make_run(segment_s=1.0), io.StringIO()
    run.reporter.log = EventLog(log)
    found = run_all(run, long_and_short)
    assert {name: len(parts) for name, parts in found.items()} == {"long.mp4": 4, "short.mp4": 2}
    assert all([part.is_last for part in parts] == [False] * (len(parts) - 1) + [True] for parts in found.values())
    summary = run.summary
    assert (summary.clips_done, summary.clips_failed, summary.segments) == (2, 0, 6)
    assert summary.video_s == pytest.approx(5.2)
    assert log.getvalue().count("\tdecode\tok\t") == 2
    again = make_run(segment_s=1.0)
    assert {name: len(parts) for name, parts in run_all(again, long_and_short).items()} == {
        "long.mp4": 1,
        "short.mp4": 1,
    }
    assert (again.summary.clips_done, again.summary.clips_cached, again.summary.segments) == (2, 2, 0)


def test_a_strict_run_refuses_a_file_once(make_run: Callable[..., RunContext], long_and_short: Path) -> None:
    found = run_all(make_run(segment_s=1.0), long_and_short)["long.mp4"]
    refused: set = set()
    noted = [replace(part, facts=replace(part.facts, notes=(NOTE,))) for part in found]  # type: ignore[type-var]
    checked = [_without_notes(part, refused) for part in noted]
    assert [part.error.kind if part.error else None for part in checked] == ["partial", None, None, None]
    assert not any(part.segments or part.failed for part in checked) and checked[-1].is_last and not refused
    assert [_without_notes(part, refused) for part in found] == found


def test_cancelling_ends_the_stages(make_run: Callable[..., RunContext], long_and_short: Path) -> None:
    run = make_run(segment_s=0.5)
    parts = encode_files(run, scan([str(long_and_short)]).items, partial(every_file))
    next(parts)
    run.clock.cancelled.set()
    assert len(list(parts)) < 16


ITEMS = [EncodedItem(WorkItem(media_item(f"{i}.mp4"), f"{i:032d}")) for i in range(5)]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in WORK_THREADS]


def test_values_and_errors_are_passed_on() -> None:
    names: list[str] = []

    def parts(fails: bool) -> Generator[EncodedItem]:
        for item in ITEMS:
            names.append(threading.current_thread().name)
            yield item
        if fails:
            raise ZeroDivisionError

    clock = StageClock()
    assert list(in_background(parts(False), clock)) == ITEMS
    assert set(names) == {WORK_THREADS[0]} and not threads() and not clock.cancelled.is_set()
    with pytest.raises(ZeroDivisionError):
        list(in_background(parts(True), clock))


def test_closing_closes_the_stages_in_their_thread() -> None:
    closed_in: list[str] = []

    def parts() -> Generator[EncodedItem]:
        try:
            yield from ITEMS
        finally:
            closed_in.append(threading.current_thread().name)

    clock = StageClock()
    values = in_background(parts(), clock)
    assert next(values) == ITEMS[0]
    values.close()
    assert clock.cancelled.is_set() and closed_in == [WORK_THREADS[0]] and not threads()


def test_a_signal_does_not_wait_for_a_long_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_stages, "GRACE_S", 0.2)
    clock, go = StageClock(), threading.Event()

    def parts() -> Generator[EncodedItem]:
        yield ITEMS[0]
        clock.stop._pending = KeyboardInterrupt()
        go.wait(60)
        yield ITEMS[1]

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), clock.stop.deferred():
        list(in_background(parts(), clock))
    assert time.monotonic() - start < 50 and threads()
    go.set()
    for thread in threads():
        thread.join(60)
