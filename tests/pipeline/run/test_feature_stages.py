"""Files arrive in parts, and are counted and logged once."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from vidqa.media.scan import scan
from vidqa.pipeline.monitor.event_log import EventLog
from vidqa.pipeline.run.feature_stages import _without_notes, encode_files
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.run_context import RunContext
from vidqa.records import EncodedItem

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
