"""Messages, the progress bar and the clock of the stages."""

from __future__ import annotations

import errno
import io
import sys
import threading
import time

import pytest

from vidqa.pipeline.monitor import progress_display
from vidqa.pipeline.monitor.event_log import EventLog
from vidqa.pipeline.monitor.progress_display import Progress, ProgressBar, ProgressLines
from vidqa.pipeline.monitor.reporter import Reporter, StageClock


def test_levels(capsys):
    reporter = Reporter(level=1, style="none")
    reporter.message("hello")
    reporter.message("detail", level=2)
    reporter.message_once("only once")
    reporter.message_once("only once")
    assert capsys.readouterr() == ("", "hello\nonly once\n")
    Reporter(level=0).message("hello")
    assert capsys.readouterr().err == ""


def test_bar_shows_rate_and_time_left_on_stderr_only(capsys):
    reporter = Reporter(level=1, style="bar")
    with reporter.progress(4, "file"):
        for _ in range(4):
            reporter.advance()
            time.sleep(0.12)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err and "<" in err and "file/s" in err.replace("s/file", "file/s")


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
@pytest.mark.parametrize("size", [(0, 0), (0, 80), (24, 0)])
def test_bar_on_a_terminal_without_a_size(size, monkeypatch):
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
        assert select.select([ours], [], [], 0)[0], "there is no bar"
        shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "4/4" in shown and "file" in shown and len(max(shown.split("\r"), key=len)) > 60


def test_a_resumed_bar_starts_where_the_earlier_run_ended(capsys):
    reporter = Reporter(level=1, style="bar")
    with reporter.progress(40, "step", done=15):
        assert "15/40" in capsys.readouterr().err
        time.sleep(0.12)
        reporter.advance()
        assert isinstance(reporter._display, ProgressBar)
        bar = reporter._display.bar
        assert (bar.n, bar.initial) == (16, 15)
        assert bar.format_dict["rate"] is None or bar.format_dict["rate"] < 10  # of one step, not 16


def wait_for(text: str, stream: io.StringIO) -> str:
    for _ in range(500):
        if text in stream.getvalue():
            return stream.getvalue()
        time.sleep(0.02)
    raise AssertionError(stream.getvalue())


def test_lines_without_a_terminal(monkeypatch):
    monkeypatch.setattr(progress_display, "LINE_INTERVAL_S", 0.05)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # not a terminal
    reporter = Reporter(level=1)
    with reporter.progress(4, "file"):
        shown = wait_for("progress: 0 of 4 files (0.0%), 0 failed, nothing finished in the last", sys.stderr)
        assert "\r" not in shown
        reporter.advance()
        reporter.advance(0.5, failed=1)
        wait_for("progress: 1 of 4 files (37.5%), 1 failed, ", sys.stderr)
        wait_for(" left\n", sys.stderr)
    assert not reporter.shows_bar


@pytest.mark.parametrize("options", [{"level": 0}, {"style": "none"}, {"style": "bar"}])
def test_no_lines(options, monkeypatch):
    monkeypatch.setattr(progress_display, "LINE_INTERVAL_S", 0.01)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Reporter(**options).progress(4, "file"):
        time.sleep(0.1)
    assert "progress" not in sys.stderr.getvalue()


def test_a_line_has_rate_and_time_left():
    lines = ProgressLines(9530, "file", 30, print)
    start = lines.counter._history[0][0]
    lines.advance(120, 2)
    assert lines.line(start + 30) == "progress: 150 of 9,530 files (1.6%), 2 failed, 4.0/s, 39 min 5 s left"
    for n in range(1, 15):
        lines.advance(1, 0)
        line = lines.line(start + 30 + 30 * n)
    assert "2.0/min, 78 h 3 min left" in line, "files that took no time do not count for ever"
    in_bytes = ProgressLines(2, "B", 0, print)
    assert in_bytes.line(start + 9).startswith("progress: 0 B of 2 B (0.0%), nothing finished in the last ")
    lines.close()
    in_bytes.close()


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text=""):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    flush = write


@pytest.mark.parametrize("style", ["auto", "bar"])
def test_messages_are_lost_without_stderr(style, monkeypatch):
    monkeypatch.setattr(progress_display, "LINE_INTERVAL_S", 0.01)
    monkeypatch.setattr(sys, "stderr", Gone())
    reporter = Reporter(style=style, log=EventLog(Gone()))
    with reporter.progress(4, "file"):
        reporter.message("hello")
        reporter.event("scan", "ok")
        for _ in range(4):
            reporter.advance()
            time.sleep(0.12)
    assert reporter.log is None


def test_clock_finds_the_bottleneck(monkeypatch):
    ticks = iter([0.0, 2.0, 2.0, 3.0, 3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    clock = StageClock()
    assert clock.bottleneck() is None
    with clock.stage("encode"):
        pass
    with clock.stage("decode"):
        pass
    with pytest.raises(KeyError), clock.stage("encode"):
        raise KeyError
    assert clock.bottleneck() == "encode"
    assert (clock.seconds["encode"], clock.seconds["decode"], clock.seconds["write"]) == (6.0, 1.0, 0.0)


def test_a_callback_gets_the_progress(monkeypatch):
    monkeypatch.setattr(progress_display, "CALL_INTERVAL_S", 0.0)
    seen: list[Progress] = []
    reporter = Reporter(level=0).calling(seen.append)
    with reporter.progress(4, "file", phase="answer"):
        reporter.advance(failed=1)
        reporter.advance(0.5)
        thread = threading.Thread(target=reporter.advance)  # counted, but the callback is for this thread
        thread.start()
        thread.join()
    assert [(p.phase, p.unit, p.total) for p in seen] == [("answer", "file", 4)] * 4
    assert [(p.done, p.failed) for p in seen] == [(0, 0), (1, 1), (1.5, 1), (2.5, 1)]
    assert (seen[0].rate, seen[0].seconds_left) == (None, None)
    assert seen[-1].rate > 0 and seen[-1].seconds_left == pytest.approx(1.5 / seen[-1].rate)
    with reporter.progress(None, "file", phase="scan"):
        reporter.advance(7)
    assert (seen[-1].phase, seen[-1].done, seen[-1].total, seen[-1].seconds_left) == ("scan", 7, None, None)


def test_a_callback_is_not_called_too_often():
    seen: list[Progress] = []
    reporter = Reporter(level=0).calling(seen.append)
    with reporter.progress(1000, "file"):
        for _ in range(1000):
            reporter.advance()
    assert (seen[0].done, seen[-1].done) == (0, 1000) and len(seen) < 100


def test_an_error_of_a_callback_is_raised_once(monkeypatch):
    monkeypatch.setattr(progress_display, "CALL_INTERVAL_S", 0.0)
    calls: list[float] = []

    def call(progress: Progress) -> None:
        calls.append(progress.done)
        if progress.done == 1:
            raise ZeroDivisionError

    reporter = Reporter(level=0).calling(call)
    with pytest.raises(ZeroDivisionError), reporter.progress(3, "file"):
        try:
            reporter.advance()
        finally:
            reporter.advance()
    assert calls == [0, 1] and reporter._calls is None
    with pytest.raises(TypeError, match="progress must be a function or None, not int"):
        reporter.calling(5)
