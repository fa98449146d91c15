"""What the table has and what this run owes: files in, work out, rows back.

Knows the table, the questions and the nights of failure; does not know media, features or models. A row is done when
media content, segment, question text, model and settings are all equal. So a renamed file keeps its rows, and of
several files with the same content one is worked on and the others get copies.

The feed's thread asks (`owed`), the main thread answers (`record`): one lock keeps them apart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from vidqa.errors import TableError
from vidqa.pipeline.run.answer_stage import Answered
from vidqa.pipeline.run.retry_policy import RetryPolicy
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import settings_of
from vidqa.records import MediaItem, Question, WorkItem
from vidqa.tables.table import Table

#: What is finished reaches the disk after so many rows, or so many seconds, whichever comes first.
COMMIT_ROWS = 500
COMMIT_S = 60.0
# The clock is looked at this often while nothing is finished, so that a slow file keeps no other one from the disk.
_LOOK_S = 5.0


class RunBookkeeper:
    """The books of one run.

    Args:
        table: loaded; only this object touches it while the run lasts.
        questions: of the run.
        run: says what produces the rows and how; counts, times and logs.
        failures: of the table, loaded.
    """

    def __init__(self, table: Table, questions: Sequence[Question], run: RunContext, failures: RetryPolicy) -> None:
        self._table, self._questions, self._failures = table, questions, failures
        self._retry, self._summary = run.options.retry, run.summary
        self._clock, self._reporter = run.clock, run.reporter
        model_id = run.model.identity.model_id
        self._cells = {q.text: (q.text, model_id, settings_of(run.options, q)) for q in questions}
        self._worked: dict[str, WorkItem] = {}  # by media id: the file that the run works on for all its twins
        self._twins: list[tuple[str, MediaItem]] = []
        self._lock = threading.Lock()
        self._uncommitted, self._committed_at = 0, time.monotonic()
        self._closed = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def n_questions(self) -> int:
        """How many rows a file without segments gives."""
        return len(self._questions)

    def owed(self, item: MediaItem, media_id: str) -> WorkItem | None:
        """The work that a file still needs; None when the table has it, or will have it from a twin.

        Args:
            item: the file.
            media_id: digest of its content.
        """
        with self._lock:
            changes = self._table.update_paths([(media_id, item)], questions=self._cells.values())
            self._summary.renamed += changes.n_renamed
            self._summary.copied += changes.n_copied if media_id not in self._worked else 0
            if media_id in self._worked:
                self._twins.append((media_id, item))
                return None
            missing = tuple(question for question in self._questions if self._lacks(item, media_id, question))
            if not missing:
                return None
            self._worked[media_id] = WorkItem(item, media_id, missing)
            return self._worked[media_id]

    def record(self, answered: Answered) -> None:
        """Take the rows of a file; they reach the disk when enough have gathered or enough time has passed."""
        with self._lock:
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name="vidqa-ledger", daemon=True)
                self._watch.start()
            self._count(answered)
            self._table.add(answered.rows)
            self._failures.note(answered.rows)
            self._uncommitted += len(answered.rows)
            if self._uncommitted >= COMMIT_ROWS or self._due():
                self._checkpoint()

    def prune(self, gone: Callable[[str], bool]) -> None:
        """Drop the rows of files that are gone; after all others, so that a renamed file has taken its rows along.

        Args:
            gone: tells it of a place.
        """
        with self._lock:
            self._summary.pruned = self._table.prune(gone)
            self._failures.keep(lambda key: self._table.status(*key) is not None)

    def close(self) -> None:
        """Give the twins their rows and merge everything into the table. Also for runs that were interrupted."""
        self._closed.set()
        with self._lock:
            for media_id, item in self._twins:
                self._copy(media_id, item)
            self._twins = []
            self._commit()

    def _lacks(self, item: MediaItem, media_id: str, question: Question) -> bool:
        """Whether a question is to be asked; counts it as known where it is not."""
        cell = self._cells[question.text]
        status = self._table.status(media_id, *cell)
        if status is None:
            return True
        key = (media_id, *cell)
        if status == "failed":
            if self._retry == "all" or (self._retry == "failed" and not self._failures.passes_over(key)):
                return True
            if self._failures.quarantined(key) and item.path not in self._summary.quarantined:
                self._summary.quarantined[item.path] = None
                self._reporter.event("quarantine", "skipped", media=item.path)
        self._summary.known[status] += 1
        return False

    def _copy(self, media_id: str, item: MediaItem) -> None:
        work = self._worked[media_id]
        for cell in (self._cells[question.text] for question in work.questions):
            again = self._table.has_failed(media_id, item.root, item.rel, cell)
            made = self._table.copy_rows(media_id, work.item, item, [cell])
            self._summary.rows.update(made)
            self._summary.failed_again += made.count("failed") if again else 0

    def _count(self, answered: Answered) -> None:
        """Before the rows are in the table, which tells what had failed before."""
        for row in answered.rows:
            self._summary.rows[row.status] += 1
            if row.status == "failed":
                cell = (row.question, row.model_id, row.settings_id)
                self._summary.failed_again += self._table.has_failed(row.media_id, row.root, row.path, cell)
            if row.error_kind:
                self._summary.errors[row.error_kind] += 1

    def _commit(self) -> None:
        self._write(self._table.commit)

    def _checkpoint(self) -> None:
        self._write(self._table.checkpoint)

    def _write(self, write: Callable[[], bool]) -> None:
        began = time.perf_counter()
        with self._clock.stage("write"):
            write()
            self._failures.save()  # after the rows: a kill in between loses one night's count
        if self._uncommitted:
            self._reporter.event(
                "write", "ok", seconds=time.perf_counter() - began, note=f"{self._uncommitted} new rows"
            )
        self._uncommitted, self._committed_at = 0, time.monotonic()

    def _due(self) -> bool:
        return time.monotonic() - self._committed_at > COMMIT_S - _LOOK_S

    def _look(self) -> None:
        """Runs in a thread of its own until the ledger is closed."""
        while not self._closed.wait(_LOOK_S):
            with self._lock:
                if self._uncommitted and self._due() and not self._closed.is_set():
                    with suppress(TableError):  # the end of the run meets the same trouble and says it
                        self._checkpoint()
