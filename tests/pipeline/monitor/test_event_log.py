"""Events are one line each whatever they contain, and a log that cannot be written does not stop the run."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from vidqa.cli.run_scope import RunScope
from vidqa.errors import UsageError
from vidqa.pipeline.monitor.event_log import EventLog
from vidqa.pipeline.monitor.reporter import Reporter

ODD = "line\nbreak\ttab \udcff.mp4"


def test_text_has_six_fields_between_tabs():
    stream = io.StringIO()
    EventLog(stream).write("decode", "failed", media=ODD, seconds=1.23456, note="crashed:\nSIGSEGV")
    EventLog(stream).write("run", "started")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    time, *rest = lines[0].split("\t")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == ["decode", "failed", "1.235", r"line\nbreak\ttab \xff.mp4", r"crashed:\nSIGSEGV"]
    assert lines[1].split("\t")[1:] == ["run", "started", "", "", ""]


def test_json_has_the_same_fields():
    stream = io.StringIO()
    EventLog(stream, as_json=True).write("answer", "ok", media=ODD, seconds=0.5, note="3 ok")
    EventLog(stream, as_json=True).write("run", "ok")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert list(first) == list(second) == ["time", "stage", "outcome", "seconds", "media", "note"]
    assert (first["seconds"], first["media"], first["note"]) == (0.5, r"line\nbreak\ttab \xff.mp4", "3 ok")
    assert second["media"] is None and second["seconds"] is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_a_full_disk_stops_the_log_but_not_the_run(capsys):
    reporter = Reporter()
    with RunScope(reporter, log="/dev/full"):  # the buffer cannot be flushed at the end either
        reporter.event("decode", "ok")
    assert capsys.readouterr().err.count("No space left") == 1


def test_log_and_metrics_paths_are_checked_before_any_work(tmp_path):
    for arguments in (
        {"log": str(tmp_path)},
        {"log": str(tmp_path / "no" / "a.log")},
        {"metrics": str(tmp_path / "no/x")},
        {"metrics": str(tmp_path)},
    ):
        with pytest.raises(UsageError):
            RunScope(Reporter(), **arguments)
