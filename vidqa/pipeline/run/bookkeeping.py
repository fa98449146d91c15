"""Last stage of a run: rows -> the table. Rows are on disk after a number of rows or seconds, and merged at the end.

That holds for every row, also if other rows of its file are missing. Until then the rows of each file are collected, so
that in the table they are in order of question and time.
Scope: the table, retries and counts; media, features and models belong to earlier stages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from vidqa.common.display import plural
from vidqa.errors import TableError
from vidqa.pipeline.run.answer_stage import Answered
from vidqa.pipeline.run.pending import PendingAnswers
from vidqa.pipeline.run.run_context import RunContext
from vidqa.records import AnswerRow, MediaItem, WorkItem

#: Finished rows are written to disk after this many rows or seconds, whichever comes first.
COMMIT_ROWS = 500
COMMIT_S = 60.0
# Interval of the check for rows that wait too long, so that one slow file does not delay the rows of others.
_CHECK_S = 5.0


@dataclass
class _OpenFile:
    """A file of which rows are missing.

    Attributes:
        work: the file.
        rows: those that the table does not have yet.
        outcome: one row of each question; a failed one, if there is any.
        failed_before: whether rows about a question had failed in an earlier run, by text.
    """

    work: WorkItem
    rows: list[AnswerRow] = field(default_factory=list)
    outcome: dict[str, AnswerRow] = field(default_factory=dict)
    failed_before: dict[str, bool] = field(default_factory=dict)


class RunBookkeeper:
    """Records the rows of one run.

    Args:
        pending: the stage that selected the work; table and retry policy are its own.
        run: its counts, clock and event log are updated.
    """

    def __init__(self, pending: PendingAnswers, run: RunContext) -> None:
        self._pending, self._table, self._retries = pending, pending.table, pending.retries
        self._summary, self._clock, self._reporter = run.summary, run.clock, run.reporter
        self._lock = pending.lock
        self._uncommitted, self._committed_at = 0, time.monotonic()
        self._open: dict[MediaItem, _OpenFile] = {}
        self._finished: set[str | None] = set()  # media_ids
        self._closed = threading.Event()
        self._timer: threading.Thread | None = None

    def record(self, answered: Answered) -> None:
        """Take rows of a file. They are written to disk later, see `COMMIT_ROWS` and `COMMIT_S`.

        Args:
            answered: some or all rows of the file.

        Raises:
            TableError: the rows cannot be written.
        """
        with self._lock:
            if self._timer is None:
                self._timer = threading.Thread(target=self._commit_in_time, name="vidqa-commit", daemon=True)
                self._timer.start()
            file = self._open.setdefault(answered.work.item, _OpenFile(answered.work))
            for row in answered.rows:
                self._count(row, file)
            self._uncommitted += len(answered.rows)
            if answered.is_last:
                self._add(file, answered.work)
                self._retries.record(file.outcome.values())
                self._finished.add(answered.work.media_id)
                del self._open[answered.work.item]
            if self._uncommitted >= COMMIT_ROWS or self._is_due():
                self._write(self._table.checkpoint)

    def prune(
        self,
        is_gone: Callable[[str], bool],
        is_replaced: Callable[[str, str], bool],
        find_moved: Callable[[Collection[str]], Iterable[tuple[str, MediaItem]]] | None = None,
    ) -> None:
        """Drop the rows of removed files, and those that report a problem of content that was replaced.

        Call it after all files, when renamed ones have taken over their rows.

        Args:
            is_gone: returns whether the file at a path was removed.
            is_replaced: returns whether the file at a path no longer has the content with a media_id.
            find_moved: returns the files with the given media_ids among those that the run did not process, which take
                over the rows; None if it processed all.
        """
        with self._lock:
            if find_moved is not None and (removed := self._table.removed(is_gone)):
                moved = self._table.update_paths(find_moved(removed), questions=())
                self._summary.renamed += moved.n_renamed
            self._summary.pruned = self._table.prune(is_gone) + self._table.drop_replaced(is_replaced)
            self._retries.drop_unless(lambda key: self._table.status(*key) is not None)

    def close(self) -> None:
        """Copy rows to duplicates and merge everything into the table. Call it for interrupted runs, too.

        Raises:
            TableError: the table cannot be written.
        """
        self._closed.set()
        with self._lock:
            for media_id, item in self._pending.duplicates:
                if media_id in self._finished:  # otherwise the next run copies them
                    self._copy(media_id, item)
            self._pending.duplicates.clear()
            self._write(self._table.commit)

    def _copy(self, media_id: str, item: MediaItem) -> None:
        work = self._pending.selected[media_id]
        for cell in (self._pending.cells[question.text] for question in work.questions):
            failed_before = self._table.has_failed(media_id, item.root, item.rel, cell)
            statuses = self._table.copy_rows(media_id, work.item, item, [cell])
            self._summary.rows.update(statuses)
            self._summary.failed_again += statuses.count("failed") if failed_before else 0

    def _count(self, row: AnswerRow, file: _OpenFile) -> None:
        """Count a new row and keep it for `_add`."""
        if row.question not in file.failed_before:  # the table still has the rows of earlier failures
            cell = (row.question, row.model_id, row.settings_id)
            file.failed_before[row.question] = self._table.has_failed(row.media_id, row.root, row.path, cell)
        self._summary.rows[row.status] += 1
        if row.status == "failed":
            self._summary.failed_again += file.failed_before[row.question]
        if row.error_kind:
            self._summary.record_error(row.path, row.error_kind)
        if row.question not in file.outcome or row.status == "failed":
            file.outcome[row.question] = row
        file.rows.append(row)

    def _add(self, file: _OpenFile, work: WorkItem) -> None:
        """Add the collected rows of a file to the table."""
        order = {question.text: number for number, question in enumerate(work.questions)}
        file.rows.sort(key=lambda row: (order[row.question], row.start_s or 0.0))
        self._table.add(file.rows, file.work.answered)
        file.rows = []

    def _write(self, write: Callable[[], bool]) -> None:
        start = time.perf_counter()
        for file in self._open.values():
            self._add(file, file.work)
        with self._clock.stage("write"):
            write()
            self._retries.save()  # after the rows: a kill in between loses one count, not a row
        if self._uncommitted:
            note = plural(self._uncommitted, "new row")
            self._reporter.event("write", "ok", seconds=time.perf_counter() - start, note=note)
        self._uncommitted, self._committed_at = 0, time.monotonic()

    def _is_due(self) -> bool:
        return time.monotonic() - self._committed_at > COMMIT_S - _CHECK_S

    def _commit_in_time(self) -> None:
        """Write rows that have waited too long. Runs in its own thread until `close`."""
        while not self._closed.wait(_CHECK_S):
            with self._lock:
                if self._uncommitted and self._is_due() and not self._closed.is_set():
                    with suppress(TableError):  # `close` meets the same error and raises it in the main thread
                        self._write(self._table.checkpoint)
