"""Rows reach the table: after a number of rows or seconds, at the end of the run, and for duplicates."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_values import QUESTIONS, encoded_segment, media_item

from vidqa.errors import ItemError
from vidqa.pipeline.run import bookkeeping
from vidqa.pipeline.run.answer_stage import Answered
from vidqa.pipeline.run.bookkeeping import RunBookkeeper
from vidqa.pipeline.run.pending import PendingAnswers
from vidqa.pipeline.run.retry_policy import RetryPolicy
from vidqa.pipeline.run.rows import answered_row, failed_row
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import settings_of
from vidqa.records import Answer, WorkItem
from vidqa.tables.formats import read_table
from vidqa.tables.table import Table

RED = Answer("red", "ok", "eos", 40, 50, 3)


class Books:
    """A table with its pending stage and bookkeeper."""

    def __init__(self, run: RunContext, path: Path) -> None:
        self.run, self.path = run, path
        table = Table(path).load()
        self.pending = PendingAnswers(table, QUESTIONS, run, RetryPolicy(path).load())
        self.bookkeeper = RunBookkeeper(self.pending, run)

    def select(self, name: str, media_id: str) -> WorkItem | None:
        return self.pending.select(media_item(name), media_id * 32)

    def answered(self, work: WorkItem, answer: Answer | ItemError = RED) -> Answered:
        identity, segment = self.run.model.identity, encoded_segment(repeated=(False,) * 6 + (True,) * 2)
        rows = [
            answered_row(work, q, segment, answer, identity, settings_of(self.run.options, q)) for q in work.questions
        ]
        return Answered(work, tuple(rows), 0.1)

    def failed(self, work: WorkItem) -> Answered:
        identity, error = self.run.model.identity, ItemError("timeout", "too slow")
        rows = [failed_row(work, q, error, identity, settings_of(self.run.options, q)) for q in work.questions]
        return Answered(work, tuple(rows))


@pytest.fixture
def books(make_run: Callable[..., RunContext], tmp_path: Path) -> Callable[..., Books]:
    def make(**options: object) -> Books:
        return Books(make_run(**options), tmp_path / "t.parquet")

    return make


def test_rows_are_in_the_table_after_close_and_counted(books: Callable[..., Books]) -> None:
    one = books()
    for name, media_id in (("a.mp4", "1"), ("b.mp4", "2")):
        work = one.select(name, media_id)
        assert work is not None
        one.bookkeeper.record(one.answered(work))
    assert not one.path.exists()
    one.bookkeeper.close()
    table = read_table(one.path)
    assert sorted(table.select("path", "question_id", "answer", "n_repeated_frames").iter_rows()) == [
        (name, question, "red", 2) for name in ("a.mp4", "b.mp4") for question in "ab"
    ]
    assert one.run.summary.rows == {"ok": 4}


def test_duplicates_get_copies_at_the_end(books: Callable[..., Books]) -> None:
    one = books()
    work = one.select("a.mp4", "1")
    assert work is not None and one.select("copy.mp4", "1") is None
    one.bookkeeper.record(one.answered(work))
    one.bookkeeper.close()
    assert sorted(read_table(one.path)["path"]) == ["a.mp4"] * 2 + ["copy.mp4"] * 2
    assert one.run.summary.rows == {"ok": 4}


def test_rows_are_on_disk_after_a_number_of_rows(books: Callable[..., Books], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeping, "COMMIT_ROWS", 3)
    one, parts = books(), []
    for number in range(3):
        work = one.select(f"{number}.mp4", str(number))
        assert work is not None
        one.bookkeeper.record(one.answered(work))
        parts.append(len(list(one.path.with_name("t.parquet.parts").glob("0*.parquet"))))
    assert parts == [0, 1, 1], "two rows a file"
    again = Table(one.path).load()
    assert len(again) == 4, "an interrupted run would keep the rows of the part"
    one.bookkeeper.close()
    assert len(read_table(one.path)) == 6


def test_rows_are_on_disk_after_a_time_without_further_rows(
    books: Callable[..., Books], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeping, "COMMIT_S", 0.2)
    monkeypatch.setattr(bookkeeping, "_CHECK_S", 0.1)
    one = books()
    work = one.select("a.mp4", "1")
    assert work is not None
    one.bookkeeper.record(one.answered(work))
    parts = one.path.with_name("t.parquet.parts")
    for _ in range(300):
        if list(parts.glob("0*.parquet")):
            break
        time.sleep(0.1)
    assert list(parts.glob("0*.parquet"))
    one.bookkeeper.close()


def test_failures_are_counted_with_their_file_and_kept_for_the_retry_policy(books: Callable[..., Books]) -> None:
    one = books()
    work = one.select("a.mp4", "1")
    assert work is not None
    one.bookkeeper.record(one.failed(work))
    one.bookkeeper.close()
    assert one.run.summary.errors == {"timeout": 2} and one.run.summary.failed_paths == ["a.mp4"]
    assert one.run.summary.failed_again == 0
    key = ("1" * 32, *one.pending.cells[QUESTIONS[0].text])
    assert RetryPolicy(one.path).load().n_failed(key) == 1
    two = books(retry="failed")
    work = two.select("a.mp4", "1")
    assert work is not None
    two.bookkeeper.record(two.failed(work))
    two.bookkeeper.close()
    assert two.run.summary.failed_again == 2 and RetryPolicy(one.path).load().n_failed(key) == 2


def test_pruning_drops_rows_and_failure_counts(books: Callable[..., Books]) -> None:
    one = books()
    for name, media_id in (("a.mp4", "1"), ("b.mp4", "2"), ("c.mp4", "3")):
        work = one.select(name, media_id)
        assert work is not None
        one.bookkeeper.record(one.failed(work))
    one.bookkeeper.prune(lambda path: path.endswith("a.mp4"), lambda media_id, path: media_id == "3" * 32)
    one.bookkeeper.close()
    assert one.run.summary.pruned == 2 and set(read_table(one.path)["path"]) == {"b.mp4"}
    retries = RetryPolicy(one.path).load()
    cell = one.pending.cells[QUESTIONS[0].text]
    assert (retries.n_failed(("1" * 32, *cell)), retries.n_failed(("2" * 32, *cell))) == (0, 1)
