"""Older content of a path and replaced models are superseded; failures, other settings and other files are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import polars as pl

from vidqa.records import AnswerRow
from vidqa.tables.schema import rows_to_frame
from vidqa.tables.superseded import answer_sets, with_current

START = datetime(2026, 1, 1, tzinfo=UTC)
A, B = "a" * 32, "b" * 32


def current(rows: list[AnswerRow]) -> list[bool]:
    frame = rows_to_frame(rows)
    batches = [frame[i : i + 1] for i in range(frame.height)]  # sets may extend over several batches
    found: Iterator[pl.DataFrame] = with_current([frame], answer_sets(batches))
    return pl.concat(found)["current"].to_list()


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def test_older_content_of_a_path(row: Callable[..., AnswerRow]) -> None:
    old, new = row(media_id=A, created_at=at(0)), row(media_id=B, created_at=at(1))
    assert current([old, new]) == [False, True]
    assert current([new, old]) == [True, False], "the time decides, not the position"
    assert current([old, row(media_id=B, path="b.mp4", created_at=at(1))]) == [True, True]
    assert current([old, row(media_id=B, root="/videos/", created_at=at(1))]) == [False, True], "the same path"
    assert current([row(media_id=A), row(media_id=B)]) == [False, True], "of the same time, the later row is newer"
    failed = row(media_id=B, created_at=at(1), status="failed")
    assert current([old, failed]) == [False, True], "the path has other content now, even if it cannot be decoded"


def test_a_file_that_could_not_be_read(row: Callable[..., AnswerRow]) -> None:
    unread = row(media_id=None, created_at=at(0), status="failed", error_kind="permission", question="Who?")
    assert current([unread, row(created_at=at(1))]) == [False, True]
    assert current([row(created_at=at(-1)), unread]) == [True, True], "nothing is known about the content now"


def test_a_replaced_model(row: Callable[..., AnswerRow]) -> None:
    old = [row(model_id="m1", start_s=float(i), created_at=at(0)) for i in range(2)]
    new = [row(model_id="m2", start_s=float(i), created_at=at(1)) for i in range(2)]
    assert current([*old, *new]) == [False, False, True, True]
    assert current([*old, new[0]]) == [True, True, True], "the new model has answered only a part"
    failed = row(model_id="m2", created_at=at(1), status="failed")
    assert current([*old, failed]) == [True, True, True], "a failure replaces nothing"
    assert current([failed, *[row(model_id="m3", created_at=at(2))]]) == [False, True]


def test_other_settings_and_questions_supersede_nothing(row: Callable[..., AnswerRow]) -> None:
    old = row(created_at=at(0))
    assert current([old, row(settings_id="s2", model_id="m2", created_at=at(1))]) == [True, True]
    assert current([old, row(question="Who?", model_id="m2", created_at=at(1))]) == [True, True]


def test_rows_without_a_time_are_the_oldest(row: Callable[..., AnswerRow]) -> None:
    frame = rows_to_frame([row(media_id=B), row(media_id=A)]).with_columns(
        pl.when(pl.col("media_id") == A).then(None).otherwise(pl.col("created_at")).alias("created_at")
    )
    (marked,) = with_current([frame], answer_sets([frame]))
    assert marked["current"].to_list() == [True, False]


def test_an_empty_table() -> None:
    assert current([]) == []
