"""Messages, the progress bar and the clock of the stages."""

from __future__ import annotations

import io
import sys
import time

import pytest

from vidqa.pipeline.monitor.reporter import Reporter, StageClock


def test_levels(capsys):
    reporter = Reporter(level=1, bar=False)
    reporter.message("hello")
    reporter.message("detail", level=2)
    reporter.message_once("only once")
    reporter.message_once("only once")
    assert capsys.readouterr() == ("", "hello\nonly once\n")
    Reporter(level=0).message("hello")
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
    reporter = Reporter(level=1, bar=True)
    with reporter.progress(40, "step", done=15):
        assert "15/40" in capsys.readouterr().err
        time.sleep(0.12)
        reporter.advance()
        assert reporter._bar is not None and (reporter._bar.n, reporter._bar.initial) == (16, 15)
        assert (
            reporter._bar.format_dict["rate"] is None or reporter._bar.format_dict["rate"] < 10
        )  # of one step, not 16


def test_no_bar_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # not a terminal
    reporter = Reporter(level=1)
    with reporter.progress(4, "file"):
        reporter.advance()
    assert sys.stderr.getvalue() == ""


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
