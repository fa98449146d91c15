"""Third stage of a run, between hashing and prefetch: hashed files -> the work that is pending for each of them.

Files for which nothing is pending are dropped. Files that could not be read pass through as failed items.

    every_file         ask, search, chat, training: all files
    each_content_once  encode: one file for each content
    PendingAnswers     describe: the questions that the table does not answer yet
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vidqa.errors import ItemError
from vidqa.pipeline.monitor.reporter import Reporter
from vidqa.pipeline.run.retry_policy import Key, RetryPolicy
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import settings_of
from vidqa.records import AnsweredSegments, EncodedItem, MediaItem, Question, Segment, WorkItem

if TYPE_CHECKING:  # imports polars, which `ask` does not need
    from vidqa.tables.table import Table

#: A file, and the media_id of its content or the reason why it could not be read.
HashedFile = tuple[MediaItem, str | ItemError]
#: A stage between hashing and prefetch.
PendingStage = Callable[[Iterable[HashedFile]], Iterator[WorkItem | EncodedItem]]


def every_file(
    hashed: Iterable[HashedFile],
    questions: tuple[Question, ...] = (),
    *,
    segments: Mapping[str, tuple[Segment, ...]] | None = None,
    read_features: bool = True,
) -> Iterator[WorkItem | EncodedItem]:
    """Yield work for every file.

    Args:
        hashed: the files.
        questions: pending for each of them.
        segments: by path; None to split files by the options of the run.
        read_features: whether cached features are read into memory.
    """
    for item, content in hashed:
        if isinstance(content, ItemError):
            yield _unreadable(item, content, questions)
        else:
            yield WorkItem(item, content, questions, segments[item.path] if segments else None, read_features)


def each_content_once(
    hashed: Iterable[HashedFile],
    reporter: Reporter,
    *,
    limit: int | None = None,
    is_cached: Callable[[WorkItem], bool] = lambda work: False,
) -> Iterator[WorkItem | EncodedItem]:
    """Yield work for the first file of each content, without questions.

    Args:
        hashed: the files.
        reporter: its progress bar is advanced for each duplicate.
        limit: stop after this many files that are not cached; None for no limit.
        is_cached: returns whether the features of a file are cached; called only if there is a limit.
    """
    seen: set[str] = set()
    n_new = 0
    for item, content in hashed:
        if isinstance(content, ItemError):
            yield _unreadable(item, content, ())
        elif content in seen:
            reporter.advance()
        else:
            seen.add(content)
            work = WorkItem(item, content, read_features=False)
            n_new += limit is not None and not is_cached(work)
            yield work
            if n_new == limit:
                return


class PendingAnswers:
    """The questions that a table does not answer yet. A `PendingStage`.

    A row is finished when content, segment, question text, model and settings are all equal. A renamed file keeps its
    rows. Of several files with the same content one is processed; the others are duplicates and get copies of its rows
    at the end of the run.

    This stage runs in the thread of the prefetcher, while `RunBookkeeper` records rows in the main thread: `lock`
    guards everything that both of them use.

    Args:
        table: loaded. Only this object and its `RunBookkeeper` use it during the run.
        questions: of the run.
        run: identifies model and settings; its counts are updated.
        retries: retry policy of the table, loaded.
    """

    def __init__(self, table: Table, questions: Sequence[Question], run: RunContext, retries: RetryPolicy) -> None:
        self.table, self.questions, self.retries = table, tuple(questions), retries
        self.lock = threading.Lock()
        self.selected: dict[str, WorkItem] = {}  # by media_id
        self.duplicates: list[tuple[str, MediaItem]] = []  # files with the media_id of a selected one
        model_id = run.model.identity.model_id
        #: Question text -> what identifies its rows, together with the media_id.
        self.cells = {q.text: (q.text, model_id, settings_of(run.options, q)) for q in questions}
        self._retry, self._strict, self._limit = run.options.retry, run.options.strict, run.options.files.limit
        self._summary, self._reporter, self._cancelled = run.summary, run.reporter, run.clock.cancelled

    @property
    def is_full(self) -> bool:
        """Whether as many files as `--limit` allows have been selected."""
        return len(self.selected) == self._limit

    def __call__(self, hashed: Iterable[HashedFile]) -> Iterator[WorkItem | EncodedItem]:
        """Yield the files that have pending questions, up to the limit.

        Files that cannot be read do not count: they are tried in every run and would block the others.

        Args:
            hashed: all files of the run.

        Raises:
            TableError: there is pending work, but the disk has no space for its rows.
        """
        for item, content in hashed:
            if self._cancelled.is_set():
                return
            if isinstance(content, ItemError):
                yield _unreadable(self._with_stored_name(item), content, self.questions)
            elif (work := self.select(item, content)) is None:
                self._reporter.advance()
            else:
                if len(self.selected) == 1:
                    self.table.check_free_space()
                yield work
                if self.is_full:
                    return

    def select(self, item: MediaItem, media_id: str) -> WorkItem | None:
        """Return the pending work of one file, or None if the table has all its rows or will copy them at the end.

        Args:
            item: the file.
            media_id: digest of its content.
        """
        item = self._with_stored_name(item)
        with self.lock:
            is_duplicate = media_id in self.selected
            changes = self.table.update_paths(
                [(media_id, item)], questions=self.cells.values(), copy_incomplete=not is_duplicate
            )
            item = next(iter(changes.stored.values()), item)
            self._summary.renamed += changes.n_renamed
            self._summary.copied += 0 if is_duplicate else changes.n_copied
            if is_duplicate:
                self.duplicates.append((media_id, item))
                return None
            answered: dict[str, AnsweredSegments] = {}
            pending = tuple(q for q in self.questions if self._is_pending(item, media_id, q, answered))
            if not pending:
                return None
            self.selected[media_id] = WorkItem(item, media_id, pending, answered=answered)
            return self.selected[media_id]

    def _with_stored_name(self, item: MediaItem) -> MediaItem:
        """Return a file with the root and path of its rows, if it has some from a run that could not read it."""
        with self.lock:
            names = self.table.unread_name(item.path)
        return item if names is None else replace(item, root=names[0], rel=names[1])

    def _is_pending(
        self, item: MediaItem, media_id: str, question: Question, answered: dict[str, AnsweredSegments]
    ) -> bool:
        """Return whether a question is to be asked. Rows that stay are counted, and their segments noted in `answered`.

        Some segments may be answered already: an earlier run was interrupted, or only some of them failed.
        """
        cell = self.cells[question.text]
        state, segments = self.table.state(media_id, *cell), self.table.segments(media_id, item, cell)
        if state is None or (state.is_noted and (state.status == "failed") != self._strict):  # --strict was switched
            return True
        is_retried = state.status == "failed" and self._is_retried(item, (media_id, *cell))
        is_pending = is_retried or (segments is not None and not segments.is_complete)
        if is_pending and segments is not None:
            starts_s = segments.answered if is_retried else segments.answered | segments.failed
            answered[question.text] = AnsweredSegments(segments.n_segments, frozenset(starts_s))
        if not is_pending or segments is not None:
            for (status, is_noted), n_rows in self.table.states(media_id, item, cell).items():
                if status != "failed" or not is_retried:
                    self._summary.existing[status] += n_rows
                    self._summary.existing_noted += n_rows if is_noted and status != "failed" else 0
        return is_pending

    def _is_retried(self, item: MediaItem, key: Key) -> bool:
        """Return whether the options ask for another try of a failed row; if not, report its quarantine."""
        if self._retry == "all" or (self._retry == "failed" and not self.retries.skip(key)):
            return True
        if self.retries.is_quarantined(key) and item.path not in self._summary.quarantined:
            self._summary.quarantined[item.path] = self.retries.n_failed(key)
            self._reporter.event("quarantine", "skipped", media=item.path)
        return False


def _unreadable(item: MediaItem, error: ItemError, questions: tuple[Question, ...]) -> EncodedItem:
    return EncodedItem(WorkItem(item, None, questions), error=error)
