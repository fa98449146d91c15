"""The metrics file, read by the parser of Prometheus."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vidqa.pipeline.monitor.prometheus import METRICS, RunEnd, metrics_text, write_metrics
from vidqa.pipeline.monitor.summary import Summary

ODD = 'a "table"\\of\nmine \udcff.csv'


def read(text: str) -> dict[tuple[str, ...], float]:
    """Return (name, label values except `table`) -> value as Prometheus reads it. Every series occurs once."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge" and family.documentation == METRICS[family.name]
        for sample in family.samples:
            key = (sample.name, *(value for name, value in sample.labels.items() if name != "table"))
            assert key not in found and "table" in sample.labels
            found[key] = sample.value
    return found


def summary() -> Summary:
    counted = Summary(files=7, clips_done=4, clips_cached=1, clips_failed=2, video_s=12.5)
    counted.rows.update(ok=3, failed=6)
    counted.failed_again = 4
    counted.existing.update(ok=9)
    counted.errors.update(timeout=1, crashed=1)
    counted.ignored = {'not "media"': 3}
    counted.excluded.update({"--exclude": 2})
    counted.quarantined = {"/a/b.mp4": 3}
    return counted


def test_every_metric_is_written_and_parsed():
    values = read(metrics_text(ODD, RunEnd(3, 1.7e9, 60.25), summary(), 1.6e9))
    assert values["vidqa_run_exit_code",] == 3 and values["vidqa_run_success",] == 1
    assert values["vidqa_run_end_timestamp_seconds",] == 1.7e9 and values["vidqa_run_duration_seconds",] == 60.25
    assert values["vidqa_files", "found"] == 7 and values["vidqa_files", "quarantined"] == 1
    assert values["vidqa_rows", "failed", "new"] == 2 and values["vidqa_rows", "ok", "existing"] == 9
    assert values["vidqa_rows", "failed", "again"] == 4
    assert values["vidqa_rows", "empty", "new"] == 0
    assert values["vidqa_errors", "timeout"] == 1
    assert values["vidqa_ignored_files", 'not "media"'] == 3 and values["vidqa_excluded_files", "--exclude"] == 2
    assert {key[0] for key in values} == set(METRICS)
    families = list(text_string_to_metric_families(metrics_text(ODD, RunEnd(0, 1, 1), None, None)))
    tables = {sample.labels["table"] for family in families for sample in family.samples}
    assert tables == {ODD.replace("\udcff", r"\xff")}


def test_a_failed_run_keeps_the_time_of_the_last_success(tmp_path: Path):
    file = tmp_path / "vidqa.prom"
    write_metrics(file, ODD, RunEnd(1, 100.0, 1.0), None)
    assert ("vidqa_run_last_success_timestamp_seconds",) not in read(file.read_text())
    write_metrics(file, ODD, RunEnd(0, 200.5, 1.0), summary())
    for code in (1, 4, 130):
        write_metrics(file, ODD, RunEnd(code, 300.0, 1.0), None)
        values = read(file.read_text())
        assert values["vidqa_run_last_success_timestamp_seconds",] == 200.5
        assert values["vidqa_run_success",] == 0 and values["vidqa_run_exit_code",] == code
    assert os.listdir(tmp_path) == ["vidqa.prom"]


def test_the_old_file_is_kept_if_the_new_one_cannot_be_written(tmp_path: Path, monkeypatch):
    file = tmp_path / "vidqa.prom"
    write_metrics(file, "t", RunEnd(0, 1.0, 1.0), None)
    before = file.read_bytes()
    monkeypatch.setattr(os, "replace", _refuse)
    with pytest.raises(OSError):
        write_metrics(file, "t", RunEnd(0, 2.0, 1.0), None)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["vidqa.prom"]


def _refuse(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_pipe_or_device_is_written_and_not_replaced(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_metrics(pipe, ODD, RunEnd(1, 100.0, 1.0), summary())
        assert read(os.read(reader, 1 << 16).decode())["vidqa_run_exit_code",] == 1
    finally:
        os.close(reader)
    assert pipe.is_fifo()
