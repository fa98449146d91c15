"""Nights of failure: counted by runs and not by clocks, kept beside the table, forgotten when they are over."""

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


def night(table: Path, *rows: AnswerRow) -> RetryPolicy:
    """One run: load, count, save."""
    failures = RetryPolicy(table).load()
    failures.note(rows)
    failures.save()
    return failures


def asked_in_later_nights(table: Path, n: int) -> list[int]:
    """The nights, of n further ones with --retry failed, in which the row is asked; it fails each time."""
    asked = []
    for number in range(1, n + 1):
        failures = RetryPolicy(table).load()
        if not failures.passes_over(KEY):
            asked.append(number)
            failures.note([row()])
        failures.save()
    return asked


def test_three_failures_in_a_row_and_then_ever_longer_pauses(tmp_path):
    table = tmp_path / "t.parquet"
    for _ in range(2):
        assert not night(table, row()).quarantined(KEY)
    assert night(table, row()).quarantined(KEY)
    first, second, third = (wait + 1 for wait in BACK_OFF)
    asked = asked_in_later_nights(table, first + second + 2 * third + 5)
    assert asked == [first, first + second, first + second + third, first + second + 2 * third]


def test_one_success_forgets_it_and_the_file_goes_with_the_last(tmp_path):
    table = tmp_path / "t.parquet"
    for _ in range(3):
        night(table, row(), row(question="Why?"))
    assert json.loads((tmp_path / "t.parquet.failures.json").read_text())["failures"][0]["path"] == "a.mp4"
    failures = night(table, row("ok"))
    assert not failures.quarantined(KEY) and failures.quarantined((KEY[0], "Why?", *KEY[2:]))
    night(table, row("ok", question="Why?"))
    assert list(tmp_path.iterdir()) == []


def test_one_failed_segment_is_a_failed_night_and_only_one(tmp_path):
    failures = night(tmp_path / "t.csv", row("ok"), row(), row(), row("ok"))
    assert json.loads(failures.path.read_text())["failures"][0]["n_failed"] == 1


def test_unread_content_is_not_counted_and_gone_content_is_forgotten(tmp_path):
    failures = night(tmp_path / "t.csv", row(media_id=None))
    assert not failures.path.exists()
    failures = night(tmp_path / "t.csv", row())
    failures.keep(lambda key: key != KEY)
    failures.save()
    assert not failures.path.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 9, "failures": []}', '{"format": 1, "failures": [{"path": 3}]}', "\xff"]
)
def test_a_damaged_file_starts_the_count_anew_and_says_so(tmp_path, caplog, content):
    (tmp_path / "t.csv.failures.json").write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING, "vidqa"):
        logging.getLogger("vidqa").propagate = True
        failures = RetryPolicy(tmp_path / "t.csv").load()
    assert "counted anew" in caplog.text
    assert not failures.quarantined(KEY)
