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
from vidqa.records import Answer, AnsweredSegments, MediaItem, WorkItem
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

    def answered(
        self, work: WorkItem, answer: Answer | ItemError = RED, start_s: float = 0.0, n: int = 1, is_last: bool = True
    ) -> Answered:
        """Return the rows of one of `n` segments."""
        identity, segment = self.run.model.identity, encoded_segment(start_s, (False,) * 6 + (True,) * 2)
        rows = [
            answered_row(work, q, segment, answer, identity, settings_of(self.run.options, q), n)
            for q in work.questions
        ]
        return Answered(work, tuple(rows), 1 / n, is_last)

    def failed(self, work: WorkItem) -> Answered:
        identity, error = self.run.model.identity, ItemError("timeout", "too slow")
        rows = [failed_row(work, q, error, identity, settings_of(self.run.options, q)) for q in work.questions]
        return Answered(work, tuple(rows))


def n_parts(books: Books) -> int:
    return len(list(books.path.with_name("t.parquet.parts").glob("0*.parquet")))


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


def test_rows_of_an_unfinished_file_are_on_disk_in_time(
    books: Callable[..., Books], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeping, "COMMIT_S", 0.2)
    monkeypatch.setattr(bookkeeping, "_CHECK_S", 0.1)
    one = books()
    work = one.select("a.mp4", "1")
    assert work is not None
    for number, start_s in enumerate((5.0, 0.0), start=1):
        one.bookkeeper.record(one.answered(work, start_s=start_s, n=4, is_last=False))
        for _ in range(300):
            if n_parts(one) == number:
                break
            time.sleep(0.1)
    killed = Table(one.path).load()
    assert len(killed) == 4
    segments = killed.segments("1" * 32, work.item, one.pending.cells[QUESTIONS[0].text])
    assert segments is not None and segments.answered == {0.0, 5.0} and not segments.is_complete
    one.bookkeeper.close()
    assert len(read_table(one.path)) == 4


def test_rows_of_a_file_are_in_order_of_question_and_time(books: Callable[..., Books]) -> None:
    one = books()
    works = [one.select(name, media_id) for name, media_id in (("a.mp4", "1"), ("b.mp4", "2"))]
    for start_s in (2.0, 0.0, 1.0):
        for work in works:
            assert work is not None
            one.bookkeeper.record(one.answered(work, start_s=start_s, n=3, is_last=start_s == 1.0))
    one.bookkeeper.close()
    assert list(read_table(one.path).select("path", "question_id", "start_s").iter_rows()) == [
        (name, question, start_s) for name in ("a.mp4", "b.mp4") for question in "ab" for start_s in (0.0, 1.0, 2.0)
    ]


def test_duplicates_of_an_unfinished_file_wait_for_the_next_run(books: Callable[..., Books], tmp_path: Path) -> None:
    first, second = (MediaItem(str(tmp_path / name), str(tmp_path), name, 1, 1) for name in ("a.mp4", "copy.mp4"))
    for item in (first, second):
        Path(item.path).touch()
    one = books()
    work = one.pending.select(first, "1" * 32)
    assert work is not None and one.pending.select(second, "1" * 32) is None
    one.bookkeeper.record(one.answered(work, n=2, is_last=False))
    one.bookkeeper.close()
    assert set(read_table(one.path)["path"]) == {"a.mp4"} and one.run.summary.rows == {"ok": 2}
    two = books()
    work = two.pending.select(first, "1" * 32)
    assert work is not None and two.pending.select(second, "1" * 32) is None
    assert work.answered == {q.text: AnsweredSegments(2, frozenset({0.0})) for q in QUESTIONS}
    assert two.run.summary.existing == {"ok": 2}
    two.bookkeeper.record(two.answered(work, start_s=1.0, n=2))
    two.bookkeeper.close()
    assert sorted(read_table(one.path).select("path", "question_id", "start_s").iter_rows()) == [
        (name, question, start_s) for name in ("a.mp4", "copy.mp4") for question in "ab" for start_s in (0.0, 1.0)
    ]
    assert two.run.summary.rows == {"ok": 6}, "two rows of the first file, four of its copy"


def test_a_file_counts_as_failed_once_a_run(books: Callable[..., Books]) -> None:
    one, error = books(), ItemError("timeout", "hangs")
    work = one.select("a.mp4", "1")
    assert work is not None
    key = ("1" * 32, *one.pending.cells[QUESTIONS[0].text])
    one.bookkeeper.record(one.answered(work, n=3, is_last=False))
    one.bookkeeper.record(one.answered(work, error, 1.0, 3, is_last=False))
    assert RetryPolicy(one.path).load().n_failed(key) == 0
    one.bookkeeper.record(one.answered(work, error, 2.0, 3))
    one.bookkeeper.close()
    assert RetryPolicy(one.path).load().n_failed(key) == 1
    two = books(retry="failed")
    work = two.select("a.mp4", "1")
    assert work is not None and work.answered[QUESTIONS[0].text] == AnsweredSegments(3, frozenset({0.0}))
    assert two.run.summary.existing == {"ok": 2}
    two.bookkeeper.record(two.answered(work, RED, 1.0, 3, is_last=False))
    two.bookkeeper.record(two.answered(work, error, 2.0, 3))
    two.bookkeeper.close()
    assert two.run.summary.failed_again == 2 and RetryPolicy(one.path).load().n_failed(key) == 2
    assert sorted(read_table(one.path).select("start_s", "status").iter_rows()) == [
        (start_s, status) for start_s, status in ((0.0, "ok"), (1.0, "ok"), (2.0, "failed")) for _ in QUESTIONS
    ]


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
