"""`--progress`: a bar, lines or nothing, and what a run prints at its end."""

from __future__ import annotations

import time

import pytest

from vidqa.pipeline.monitor import progress_display


@pytest.fixture
def slow_encoder(monkeypatch):
    """Each batch takes long enough for a bar and for a line."""
    from vidqa.encoders.encoder import Encoder

    encode = Encoder.encode

    def slowly(self, inputs):
        time.sleep(0.3)
        return encode(self, inputs)

    monkeypatch.setattr(Encoder, "encode", slowly)
    monkeypatch.setattr(progress_display, "LINE_INTERVAL_S", 0.05)


@pytest.mark.parametrize(
    ("option", "bar", "lines"),
    [(None, False, True), ("auto", False, True), ("bar", True, False), ("lines", False, True), ("none", False, False)],
)
def test_styles(option, bar, lines, vidqa, clips, tmp_path, slow_encoder):
    options = () if option is None else ("--progress", option)
    done = vidqa("encode", clips, *options)
    assert done.code == 0, done.err
    assert ("progress: " in done.err, "0/3 [" in done.err) == (lines, bar)
    assert "3 files encoded" in done.err  # the summary is no progress


def test_quiet_shows_no_progress(vidqa, clips, tmp_path, slow_encoder):
    done = vidqa("describe", clips, "--out", tmp_path / "t.csv", "-q", "--progress", "lines")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("command", [("describe", "--out", "t.csv"), ("search", "a dog"), ("encode",), ("train",)])
def test_wrong_style(command, vidqa):
    done = vidqa(*command, "x", "--progress", "percent")
    assert done.code == 2 and "'auto', 'bar', 'lines', 'none'" in done.err


def test_the_throughput_is_printed_with_v_only(vidqa, clips, tmp_path):
    plain = vidqa("describe", clips, "--out", tmp_path / "t.csv")
    assert plain.err.splitlines()[-1].startswith("vidqa: t.csv: 3 new rows")
    assert "throughput:" not in plain.err and "hardware" not in plain.err
    verbose = vidqa("describe", clips, "--out", tmp_path / "u.csv", "-v")
    assert "throughput:" in verbose.err and "answers/s" in verbose.err
