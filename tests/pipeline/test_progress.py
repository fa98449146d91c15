"""Messages, the bar, the clock and the closing summary."""

from __future__ import annotations

import io
import json
import sys
import time

import pytest

from vidqa.pipeline.monitor.reporter import STAGES, Reporter, StageClock
from vidqa.pipeline.monitor.summary import Summary


def test_levels(capsys):
    reporter = Reporter(level=1, bar=False)
    reporter.say("hello")
    reporter.say("detail", level=2)
    reporter.say_once("only once")
    reporter.say_once("only once")
    assert capsys.readouterr() == ("", "hello\nonly once\n")
    Reporter(level=0).say("hello")
    assert capsys.readouterr().err == ""


def test_bar_shows_rate_and_time_left_on_stderr_only(capsys):
    reporter = Reporter(level=1, bar=True)
    with reporter.progress(4, "file"):
        for _ in range(4):
            reporter.advance()
            time.sleep(0.12)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err and "<" in err and "file/s" in err.replace("s/file", "file/s")


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
@pytest.mark.parametrize("size", [(0, 0), (0, 80), (24, 0)])
def test_bar_on_a_terminal_that_does_not_tell_its_size(size, monkeypatch):
    import fcntl
    import os
    import pty
    import select
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with open(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        reporter = Reporter()
        with reporter.progress(4, "file"):
            for _ in range(4):
                reporter.advance()
                time.sleep(0.12)
        assert select.select([ours], [], [], 0)[0], "nothing was drawn"
        shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "4/4" in shown and "file" in shown and len(max(shown.split("\r"), key=len)) > 60


def test_a_bar_that_goes_on_begins_where_the_earlier_run_ended(capsys):
    reporter = Reporter(level=1, bar=True)
    with reporter.progress(40, "step", done=15):
        assert "15/40" in capsys.readouterr().err
        time.sleep(0.12)
        reporter.advance()
        assert reporter._bar is not None and (reporter._bar.n, reporter._bar.initial) == (16, 15)
        assert (
            reporter._bar.format_dict["rate"] is None or reporter._bar.format_dict["rate"] < 10
        )  # of one step, not 16


def test_no_bar_where_nobody_looks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # not a terminal
    reporter = Reporter(level=1)
    with reporter.progress(4, "file"):
        reporter.advance()
    assert sys.stderr.getvalue() == ""


def test_clock_names_the_stage_that_limits(monkeypatch):
    ticks = iter([0.0, 2.0, 2.0, 3.0, 3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    clock = StageClock()
    assert clock.limit() is None
    with clock.stage("encode"):
        pass
    with clock.stage("decode"):
        pass
    with pytest.raises(KeyError), clock.stage("encode"):
        raise KeyError
    assert clock.limit() == "encode"
    assert (clock.seconds["encode"], clock.seconds["decode"], clock.seconds["write"]) == (6.0, 1.0, 0.0)


def test_summary_text_and_json():
    summary = Summary(table="t.csv", files=5, clips_done=3, clips_failed=1, video_s=7200.0)
    summary.rows.update(ok=2, failed=1)
    summary.known.update(ok=2)
    summary.errors.update(timeout=1)
    clock = StageClock()
    clock.seconds["generate"] = 2.5
    summary.close(clock, wall_s=3.0)
    text = summary.as_text()
    for part in (
        "3 clips",
        "2.00 h of video",
        "2 ok, 1 failed",
        "rows already there: 2 ok",
        "1 timeout",
        "limited by generate",
    ):
        assert part in text
    assert summary.n_failed == 1
    plain = json.loads(json.dumps(summary.as_dict()))
    assert plain["limit"] == "generate" and "limiting" not in plain["rates"]  # one verdict, not two that could differ
    assert set(plain["seconds"]) == set(STAGES)
    assert plain["hours_of_video"] == 2.0


def test_summary_of_nothing():
    summary = Summary(table="t.csv", files=1)
    summary.known.update(ok=1)
    summary.close(StageClock(), wall_s=0.1)
    assert summary.nothing_done and summary.limit is None and summary.n_failed == 0
    assert "nothing to do: all rows of 1 file are there already" in summary.as_text()


def test_summary_without_a_table_speaks_of_clips():
    summary = Summary(files=5, clips_done=3, clips_cached=2, clips_failed=1, video_s=60.0)
    summary.close(StageClock(), wall_s=3.0)
    assert summary.as_text().splitlines()[0] == "2 clips encoded, 2 in the cache already, 60.0 s of video in 3.0 s"
    assert summary.as_line() == "vidqa: cache: 2 clips encoded, 2 known, 1 failed; 5 files in 3.0 s"
    assert "row" not in summary.as_text()
