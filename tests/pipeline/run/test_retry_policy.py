"""Failures are counted by runs and not by the clock, kept next to the table, and dropped after a success."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vidqa.pipeline.run.retry_policy import BACK_OFF, RetryPolicy
from vidqa.records import AnswerRow

KEY = ("m" * 32, "What?", "model", "settings")


def row(status: str = "failed", media_id: str | None = KEY[0], question: str = KEY[1]) -> AnswerRow:
    values = dict.fromkeys(AnswerRow.__dataclass_fields__)
    values |= {"media_id": media_id, "question": question, "model_id": KEY[2], "settings_id": KEY[3], "path": "a.mp4"}
    values |= {"status": status, "error_kind": "crashed" if status == "failed" else None}
    return AnswerRow(**values | {"created_at": datetime.now(UTC)})


def run(table: Path, *rows: AnswerRow) -> RetryPolicy:
    """Do what a run does: load, record, save."""
    failures = RetryPolicy(table).load()
    failures.record(rows)
    failures.save()
    return failures


def runs_that_try_again(table: Path, n: int) -> list[int]:
    """Return which of n further runs with --retry failed try the row again; it fails each time."""
    tried = []
    for number in range(1, n + 1):
        failures = RetryPolicy(table).load()
        if not failures.skip(KEY):
            tried.append(number)
            failures.record([row()])
        failures.save()
    return tried


def test_three_failures_in_a_row_lead_to_growing_pauses(tmp_path):
    table = tmp_path / "t.parquet"
    for _ in range(2):
        assert not run(table, row()).is_quarantined(KEY)
    assert run(table, row()).is_quarantined(KEY)
    first, second, third = (wait + 1 for wait in BACK_OFF)
    tried = runs_that_try_again(table, first + second + 2 * third + 5)
    assert tried == [first, first + second, first + second + third, first + second + 2 * third]


def test_a_success_resets_the_count_and_the_last_one_removes_the_file(tmp_path):
    table = tmp_path / "t.parquet"
    for _ in range(3):
        run(table, row(), row(question="Why?"))
    assert json.loads((tmp_path / "t.parquet.failures.json").read_text())["failures"][0]["path"] == "a.mp4"
    failures = run(table, row("ok"))
    assert not failures.is_quarantined(KEY) and failures.is_quarantined((KEY[0], "Why?", *KEY[2:]))
    run(table, row("ok", question="Why?"))
    assert list(tmp_path.iterdir()) == []


def test_several_failed_segments_count_as_one_failed_run(tmp_path):
    failures = run(tmp_path / "t.csv", row("ok"), row(), row(), row("ok"))
    assert json.loads(failures.path.read_text())["failures"][0]["n_failed"] == 1


def test_unreadable_content_is_not_counted_and_removed_content_is_dropped(tmp_path):
    failures = run(tmp_path / "t.csv", row(media_id=None))
    assert not failures.path.exists()
    failures = run(tmp_path / "t.csv", row())
    failures.drop_unless(lambda key: key != KEY)
    failures.save()
    assert not failures.path.exists()


def one_failure(**values: object) -> str:
    names = ("media_id", "question", "model_id", "settings_id", "path", "error_kind")
    return json.dumps({"format": 1, "failures": [dict.fromkeys(names, "x") | values]})


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"format": 9, "failures": []}', '{"format": 1, "failures": [{"path": 3}]}', "\xff"),
        *(one_failure(n_failed=number) for number in (-1, 1.5, None, float("nan"), "3")),
        *(one_failure(question=text) for text in (["a"], None, 3)),
    ],
)
def test_a_damaged_file_resets_the_counts_with_a_warning(tmp_path, caplog, content):
    (tmp_path / "t.csv.failures.json").write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING, "vidqa"):
        logging.getLogger("vidqa").propagate = True
        failures = RetryPolicy(tmp_path / "t.csv").load()
    assert "counted from zero" in caplog.text
    assert not failures.is_quarantined(KEY)
