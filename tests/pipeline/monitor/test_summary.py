"""The counts of a run as text, as one line and as JSON."""

from __future__ import annotations

import json

from vidqa.pipeline.monitor.reporter import STAGES, StageClock
from vidqa.pipeline.monitor.summary import Summary


def test_text_and_json():
    summary = Summary(table="t.csv", files=5, clips_done=3, clips_failed=1, video_s=7200.0)
    summary.rows.update(ok=2, failed=1)
    summary.existing.update(ok=2)
    summary.record_error("a.mp4", "timeout")
    clock = StageClock()
    clock.seconds["generate"] = 2.5
    summary.close(clock, wall_s=3.0)
    text = summary.as_text()
    for part in (
        "3 files processed",
        "2 h 0 min of video",
        "2 ok, 1 failed",
        "existing rows: 2 ok",
        "failures: 1 timeout in a.mp4; see -v",
        "bottleneck: generate",
    ):
        assert part in text
    assert summary.n_failed == 1
    assert "see -v" not in summary.as_text(verbose=True)
    plain = json.loads(json.dumps(summary.as_dict()))
    assert plain["bottleneck"] == "generate"
    assert "bottleneck" not in plain["rates"], "there is one bottleneck, not two that could differ"
    assert set(plain["seconds"]) == set(STAGES)
    assert plain["hours_of_video"] == 2.0


def test_files_with_problems():
    summary = Summary(table="t.csv", files=9, clips_done=9)
    summary.existing.update(ok=5)
    summary.existing_noted = 2
    for number in range(4):
        summary.record_notes(f"{number}.mp4", ("truncated: 5.2 of 20.0 s readable",))
    summary.record_notes("x.tif", ("1 of 3 pages", "2 of 3 pages", "odd"))
    text = summary.as_text()
    assert "5 files with problems: 4 truncated, 1 other, 1 pages in 0.mp4, 1.mp4, 2.mp4, ...; see -v; --strict" in text
    assert "existing rows: 5 ok (2 about files with problems)" in text
    assert "see -v" not in summary.as_text(verbose=True)
    plain = json.loads(json.dumps(summary.as_dict()))
    assert (plain["noted_files"], plain["existing_noted"]) == (5, 2)
    assert plain["notes"] == {"truncated": 4, "pages": 1, "other": 1}


def test_nothing_to_do():
    summary = Summary(table="t.csv", files=1)
    summary.existing.update(ok=1)
    summary.close(StageClock(), wall_s=0.1)
    assert summary.nothing_done and summary.bottleneck is None and summary.n_failed == 0
    assert "nothing to do: all rows of 1 file exist" in summary.as_text()


def test_without_a_table_files_are_counted_instead_of_rows():
    summary = Summary(files=5, clips_done=3, clips_cached=2, clips_failed=1, video_s=50.0)
    summary.close(StageClock(), wall_s=3.0)
    assert summary.as_text().splitlines()[0] == "2 files encoded, 2 already cached, 50.0 s of video in 3.0 s"
    assert summary.as_line() == "vidqa: cache: 2 files encoded, 2 already cached, 1 failed; 5 files in 3.0 s"
    assert "row" not in summary.as_text()


def test_large_numbers_have_separators_and_only_three_failed_files_are_named():
    summary = Summary(table="t.csv", files=5000, clips_done=5000)
    summary.rows.update(ok=4995, failed=5)
    for number in range(5):
        summary.record_error(f"{number}.mp4", "timeout")
    assert summary.as_text().splitlines()[0].startswith("5,000 files processed")
    assert "failures: 5 timeout in 0.mp4, 1.mp4, 2.mp4, ...; see -v" in summary.as_text()
    assert summary.as_line().startswith("vidqa: t.csv: 5,000 new rows, 5 failed (5 of them new); 5,000 files in ")


def test_quarantined_files_are_named_with_their_number_of_failures():
    summary = Summary(table="t.csv", files=4, quarantined={f"/a/{n}.mp4": 3 + n for n in range(4)})
    summary.existing.update(failed=4)
    text = summary.as_text()
    assert "quarantined: 4 files that failed in at least 3 runs in a row; --retry all tries again" in text
    assert "/a/0.mp4, /a/1.mp4, /a/2.mp4 and 1 more" in text and "--retry failed" not in text


def test_the_throughput_is_for_verbose_output():
    summary = Summary(table="t.csv", clips_done=1)
    summary.meter.encode.add(10, 1.0)
    summary.meter.encode_operations = 1e12
    summary.meter.set_hardware_speed(2e12, 1e10)
    assert "throughput:" not in summary.as_text()
    assert "50% of the hardware's limit of 20" in summary.as_text(verbose=True)
