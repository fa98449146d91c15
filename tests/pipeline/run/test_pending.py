"""Which work is pending: for every file, once per content, or for the questions that a table does not answer yet."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from run_values import QUESTIONS, media_item

from vidqa.errors import ItemError
from vidqa.pipeline.monitor.reporter import Reporter
from vidqa.pipeline.run.pending import PendingAnswers, each_content_once, every_file
from vidqa.pipeline.run.retry_policy import QUARANTINE_AFTER, RetryPolicy
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import settings_of
from vidqa.records import AnswerRow, EncodedItem, MediaItem, Question, Segment, WorkItem
from vidqa.tables.table import Table

MISSING = ItemError("missing", "no such file")


def row(run: RunContext, item: MediaItem, media_id: str | None, question: Question, status: str = "ok") -> AnswerRow:
    identity = run.model.identity
    values = dict.fromkeys(AnswerRow.__dataclass_fields__)
    values |= {"media_id": media_id, "root": item.root, "path": item.rel, "status": status}  # type: ignore[dict-item]
    values |= {"question_id": question.id, "question": question.text, "model_id": identity.model_id}  # type: ignore[dict-item]
    values |= {"settings_id": settings_of(run.options, question), "created_at": datetime.now(UTC)}  # type: ignore[dict-item]
    values |= {"model": "tiny", "encoder_id": "e", "vidqa_version": "0"}  # type: ignore[dict-item]
    values |= {"error_kind": "timeout" if status == "failed" else None}  # type: ignore[dict-item]
    return AnswerRow(**values)  # type: ignore[arg-type]


class Advances(Reporter):
    """Counts how far the progress bar was advanced."""

    n = 0

    def advance(self, n: int = 1) -> None:
        self.n += n


def test_every_file_is_pending() -> None:
    hashed = [(media_item("a.mp4"), "1"), (media_item("b.mp4"), MISSING), (media_item("c.mp4"), "1")]
    first, unreadable, duplicate = every_file(hashed, QUESTIONS)
    assert first == WorkItem(media_item("a.mp4"), "1", QUESTIONS)
    assert isinstance(unreadable, EncodedItem) and unreadable.error is MISSING
    assert unreadable.work == WorkItem(media_item("b.mp4"), None, QUESTIONS)
    assert isinstance(duplicate, WorkItem) and duplicate.item.rel == "c.mp4"
    segments = {"/clips/a.mp4": (Segment(1.0, 2.0),)}
    (work,) = every_file(hashed[:1], segments=segments, read_features=False)
    assert work == WorkItem(media_item("a.mp4"), "1", (), (Segment(1.0, 2.0),), read_features=False)


def test_each_content_is_encoded_once() -> None:
    reporter = Advances()
    hashed = [(media_item("a.mp4"), "1"), (media_item("b.mp4"), "2"), (media_item("c.mp4"), "1")]
    work = list(each_content_once([*hashed, (media_item("d.mp4"), MISSING)], reporter))
    assert work[:2] == [
        WorkItem(media_item("a.mp4"), "1", read_features=False),
        WorkItem(media_item("b.mp4"), "2", read_features=False),
    ]
    assert len(work) == 3 and isinstance(work[2], EncodedItem)
    assert reporter.n == 1, "the duplicate needs no work"


class TestPendingAnswers:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Table:
        return Table(tmp_path / "t.parquet").load()

    def pending(self, run: RunContext, table: Table) -> PendingAnswers:
        return PendingAnswers(table, QUESTIONS, run, RetryPolicy(table.path).load())

    def test_only_questions_without_a_row_are_pending(self, make_run: Callable[..., RunContext], table: Table) -> None:
        run, item = make_run(), media_item("a.mp4")
        table.add([row(run, item, "1" * 32, QUESTIONS[0])])
        work = list(self.pending(run, table)([(item, "1" * 32), (media_item("b.mp4"), "2" * 32)]))
        assert work == [
            WorkItem(item, "1" * 32, QUESTIONS[1:]),
            WorkItem(media_item("b.mp4"), "2" * 32, QUESTIONS),
        ]
        assert run.summary.existing == {"ok": 1}

    def test_finished_files_are_dropped_and_unreadable_ones_pass(
        self, make_run: Callable[..., RunContext], table: Table
    ) -> None:
        run, item = make_run(), media_item("a.mp4")
        run = RunContext(run.model, run.options, Advances(), run.summary, run.clock)
        table.add([row(run, item, "1" * 32, question) for question in QUESTIONS])
        work = list(self.pending(run, table)([(item, "1" * 32), (media_item("b.mp4"), MISSING)]))
        assert [(type(one), one.work.questions) for one in work if isinstance(one, EncodedItem)] == [
            (EncodedItem, QUESTIONS)
        ]
        assert len(work) == 1 and run.reporter.n == 1  # type: ignore[attr-defined]

    def test_duplicates_are_processed_once(self, make_run: Callable[..., RunContext], table: Table) -> None:
        run = make_run()
        pending = self.pending(run, table)
        work = list(pending([(media_item(f"{name}.mp4"), "1" * 32) for name in "abc"]))
        assert [one.item.rel for one in work if isinstance(one, WorkItem)] == ["a.mp4"]
        assert [(media_id, item.rel) for media_id, item in pending.duplicates] == [
            ("1" * 32, "b.mp4"),
            ("1" * 32, "c.mp4"),
        ]

    @pytest.mark.parametrize(("retry", "n_pending"), [(None, 0), ("failed", 2), ("all", 2)])
    def test_failed_rows_are_tried_again_on_request(
        self, make_run: Callable[..., RunContext], table: Table, retry: str | None, n_pending: int
    ) -> None:
        run, item = make_run(retry=retry), media_item("a.mp4")
        table.add([row(run, item, "1" * 32, question, "failed") for question in QUESTIONS])
        work = self.pending(run, table).select(item, "1" * 32)
        assert len(work.questions if work else ()) == n_pending
        assert run.summary.existing["failed"] == 2 - n_pending

    def test_quarantined_rows_are_skipped_and_reported(self, make_run: Callable[..., RunContext], table: Table) -> None:
        run, item = make_run(retry="failed"), media_item("a.mp4")
        rows = [row(run, item, "1" * 32, question, "failed") for question in QUESTIONS]
        table.add(rows)
        pending = self.pending(run, table)
        for _ in range(QUARANTINE_AFTER + 1):
            pending.retries.record(rows)
        assert pending.select(item, "1" * 32) is None
        assert run.summary.quarantined == {item.path: QUARANTINE_AFTER + 1}
        everything = make_run(retry="all")
        pending = PendingAnswers(table, QUESTIONS, everything, pending.retries)
        assert pending.select(item, "1" * 32) == WorkItem(item, "1" * 32, QUESTIONS)

    def test_renamed_files_keep_their_rows(
        self, make_run: Callable[..., RunContext], table: Table, tmp_path: Path
    ) -> None:
        run = make_run()
        old, new = (MediaItem(str(tmp_path / n), str(tmp_path), n, 1, 1) for n in ("old.mp4", "new.mp4"))
        table.add([row(run, old, "1" * 32, question) for question in QUESTIONS])
        assert self.pending(run, table).select(new, "1" * 32) is None
        assert (run.summary.renamed, run.summary.copied) == (1, 0)
