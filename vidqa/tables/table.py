"""The table of a run: which rows exist, which are new, and when they reach the disk.

A question about a file is answered if the table has rows with the file's media_id and the same question text, model_id
and settings_id; the segmentation is part of settings_id. The rows of a long video may be added one after another, so a
question may be answered for some segments only: see `segments`.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

from vidqa.common.disk_space import free_disk_bytes
from vidqa.common.display import human_bytes
from vidqa.common.file_identity import is_same_file
from vidqa.records import AnsweredSegments, AnswerRow, MediaItem, Status
from vidqa.tables import formats
from vidqa.tables.journal import change_log
from vidqa.tables.journal.change_log import FileChange, QuestionChange, RowChange
from vidqa.tables.journal.row_index import IndexedFile, RowIndex
from vidqa.tables.journal.row_keys import QuestionKey, RowEntry, RowState, file_path
from vidqa.tables.journal.segment_rows import SegmentRows
from vidqa.tables.journal.storage import TableStorage
from vidqa.tables.provenance import Provenance
from vidqa.tables.schema import frame_to_rows, rows_to_frame

#: Bytes per row of a table that does not exist yet.
_ROW_BYTES = 400
#: Size of a part file with one row.
_PART_BYTES = 16 << 10

# If the segments of a file ended differently, the status with the highest severity counts.
_SEVERITY: dict[str, int] = {"ok": 0, "empty": 1, "truncated": 2, "skipped": 3, "failed": 4}


@dataclass(frozen=True)
class PathChanges:
    """Result of `Table.update_paths`: numbers of files, and files that have rows under another name."""

    n_renamed: int
    n_copied: int
    stored: dict[str, MediaItem] = field(default_factory=dict)  # path of the file -> it, with the names of its rows


class Table:
    """A table on disk and the changes that a run makes to it.

    `checkpoint` writes the changes to a journal next to the table, `commit` merges the journal into the table. Memory
    holds only the keys of the rows, and the rows added since the last checkpoint.

    Args:
        path: location of the table, which need not exist yet; the suffix selects Parquet, CSV, JSONL or Arrow. A name
            with a trailing slash, or an existing folder, is a dataset of Parquet files. Symbolic links are followed.
        for_spreadsheets: escape formulas in CSV; an existing file with escapes keeps them.

    Raises:
        TableError: unknown suffix.
    """

    def __init__(self, path: str | os.PathLike[str], *, for_spreadsheets: bool = False) -> None:
        self._storage = TableStorage(path, for_spreadsheets=for_spreadsheets)
        self.path = self._storage.destination.path
        self._cached_index: RowIndex | None = RowIndex()
        self._unsaved: list[RowChange | FileChange | QuestionChange] = []
        self._added: set[tuple[str | None, str, QuestionKey]] = set()
        self._starts: dict[tuple[str | None, str, QuestionKey], set[float | None]] = {}  # if there are several segments
        self._unread: dict[str, tuple[str, str]] | None = None
        self._loaded = False

    def load(self) -> Table:
        """Index the rows of the table and of the journal that an interrupted run left. Writes nothing.

        Changes without a checkpoint are discarded.

        Raises:
            TableError: the file is not a vidqa table (it is left as it is), or its folder is not writable.
        """
        self._added, self._starts, self._unsaved, self._unread = set(), {}, [], None
        self._cached_index, self._loaded = self._storage.open(), True
        return self

    def set_provenance(self, provenance: Provenance) -> None:
        """State what the ids of the rows stand for that are added from now on. It is stored with them.

        Args:
            provenance: settings, models and questions of the rows.
        """
        self._storage.added_provenance = provenance

    def __len__(self) -> int:
        """Return the number of rows, including those not yet committed."""
        return len(self._index)

    def recover(self) -> int:
        """Merge the journal of an interrupted run into the table and delete its leftovers. Call it after `load`.

        Returns:
            The number of rows that the interrupted run had finished.

        Raises:
            TableError: as `commit`.
        """
        if not self._storage.has_journal:
            return 0
        n = self._storage.n_pending()
        self._storage.merge(self._index, write_empty=False)
        self._cached_index = None
        return n

    def state(self, media_id: str | None, question: str, model_id: str, settings_id: str) -> RowState | None:
        """Return the state of the answer to a question about a media_id; None if the question is not answered yet.

        If several rows answer it (segments, duplicates), the most severe status counts: failed, skipped, truncated,
        empty, ok. For a file that could not be read (media_id None) the result is always None.
        """
        if media_id is None:
            return None
        found = self._index.states(media_id, QuestionKey(question, model_id, settings_id))
        return max(found, key=lambda state: (_SEVERITY[state.status], state.is_noted), default=None)

    def bytes_needed(self, n_rows: int) -> int:
        """Return the free space that a run needs which adds a number of rows: for part files and a new table.

        The old table stays until the new one is complete. A dataset only grows by new files.
        """
        old = self.path.stat().st_size if self.path.is_file() else 0
        row_bytes = old / len(self) if old and len(self) else _ROW_BYTES
        return old + round(2 * n_rows * row_bytes)

    def check_free_space(self) -> None:
        """Check, before the first row is computed, that the table can be written at all.

        Raises:
            TableError: the disk is full, or has no space for a second copy of the table.
        """
        free, needed = free_disk_bytes(self.path.parent), self.bytes_needed(0) + _PART_BYTES
        if free < needed:
            error = OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {human_bytes(needed)} required, {human_bytes(free)} free"
            )
            raise formats.write_error(self.path, error)

    def status(self, media_id: str | None, question: str, model_id: str, settings_id: str) -> Status | None:
        """Return the status of the answer to a question about a media_id, as in `state`."""
        state = self.state(media_id, question, model_id, settings_id)
        return None if state is None else state.status

    def has_failed(self, media_id: str | None, root: str, path: str, question: tuple[str, str, str]) -> bool:
        """Return whether a file has a failed row that `add` or `copy_rows` would replace.

        Args:
            media_id: digest of the file's content; None if it could not be read.
            root: as in its rows.
            path: as in its rows.
            question: (question, model_id, settings_id).
        """
        return self._index.has_failed(media_id, file_path(root, path), QuestionKey(*question))

    def states(self, media_id: str, item: MediaItem, question: tuple[str, str, str]) -> Counter[RowState]:
        """Count the rows of a file that answer a question, by their states.

        Args:
            media_id: digest of the file's content.
            item: the file.
            question: (question, model_id, settings_id).
        """
        return self._index.states(media_id, QuestionKey(*question), file_path(item.root, item.rel))

    def segments(self, media_id: str, item: MediaItem, question: tuple[str, str, str]) -> SegmentRows | None:
        """Return which segments of a file answer a question; None if all do and none has failed, or there is no row.

        Args:
            media_id: digest of the file's content.
            item: the file.
            question: (question, model_id, settings_id).
        """
        return self._index.segments(media_id, file_path(item.root, item.rel), QuestionKey(*question))

    def add(self, rows: Iterable[AnswerRow], answered: Mapping[str, AnsweredSegments] | None = None) -> None:
        """Add rows. If a file has several segments, its rows for a question may be added in several calls.

        The first of them replace existing rows with the same file, media_id, question, model and settings, so a retry
        replaces failed rows. They also replace rows that were added when the file could not be read.

        Args:
            rows: to add.
            answered: by text of a question, segments whose existing rows are kept. Failed rows of other segments are
                replaced.

        Raises:
            ValueError: a row for the same file, question and segment has already been added since `load`.
        """
        groups: dict[tuple[str | None, str, QuestionKey], list[AnswerRow]] = {}
        for row in rows:
            question = QuestionKey(row.question, row.model_id, row.settings_id)
            groups.setdefault((row.media_id, file_path(row.root, row.path), question), []).append(row)
        for key in groups.keys() & self._added:
            if key not in self._starts or not self._starts[key].isdisjoint(row.start_s for row in groups[key]):
                raise ValueError(f"a row of a file, question and segment is added twice: {key}")
        for key, group in groups.items():
            first, kept = group[0], (answered or {}).get(group[0].question)
            op: Literal["row", "add"] = "add" if key in self._added or self._keep(*key, first, kept) else "row"
            if kept is not None or (first.n_segments or 0) > 1:
                self._starts.setdefault(key, set()).update(row.start_s for row in group)
            change_log.add_rows(self._index, key[0], first.root, first.path, [RowEntry.of(row) for row in group], op)
            self._unsaved += (RowChange(row, op) for row in group)
        self._added.update(groups)  # `|= groups.keys()` would copy the whole set for every file

    def _keep(
        self, media_id: str | None, path: str, question: QuestionKey, row: AnswerRow, kept: AnsweredSegments | None
    ) -> bool:
        """Return whether existing rows of a file for a question stay, and drop the failed ones that do not."""
        existing = self._index.segments(media_id, path, question)
        if kept is None or existing is None or row.n_segments not in (None, kept.n_segments):
            return False
        if existing.rest_failed or existing.failed - kept.starts_s:
            self._apply(FileChange("drop", media_id, row.root, row.path, question, only_failed=True))
        return True

    def update_paths(
        self,
        files: Iterable[tuple[str, MediaItem]],
        *,
        questions: Collection[tuple[str, str, str]] | None = None,
        exists: Callable[[str], bool] = os.path.lexists,
        copy_incomplete: bool = True,
    ) -> PathChanges:
        """Assign the rows of each media_id to the files that the scan found with it.

        A file without rows takes over the rows of a duplicate that no longer exists: the file was renamed. If all its
        duplicates still exist, it gets copies of their rows. Rows of missing files stay. Rows of the same file under
        another name, through a symbolic link for example, are its own; they keep that name.

        Args:
            files: (media_id, file) as found by the scan. They may be passed one by one, but renames are matched best if
                all are passed at once.
            questions: (question, model_id, settings_id) whose rows may be copied; None for all.
            exists: returns whether a path exists.
            copy_incomplete: whether a file without rows gets copies if only some segments are answered.
        """
        by_content: dict[str, dict[str, MediaItem]] = {}
        for media_id, item in files:
            by_content.setdefault(media_id, {})[file_path(item.root, item.rel)] = item
        n_renamed = n_copied = 0
        stored: dict[str, MediaItem] = {}
        for media_id, present in by_content.items():
            indexed = self._index.files(media_id)
            for path in [path for path in present if path not in indexed]:
                old_path = next((old for old in indexed if old not in present and is_same_file(old, path)), None)
                if old_path is not None:
                    old = indexed[old_path]
                    present[old_path] = stored[path] = replace(present.pop(path), root=old.root, rel=old.path)
            new = [path for path in present if path not in indexed]
            gone = [path for path in indexed if path not in present and not exists(path)] if new else []
            for old_path, path in zip(gone, new, strict=False):
                old, item = indexed.pop(old_path), present[path]
                self._apply(FileChange("move", media_id, old.root, old.path, None, item.root, item.rel))
                indexed[path] = IndexedFile(item.root, item.rel, old.questions)
                n_renamed += 1
            if len(indexed.keys() | present.keys()) > 1:
                for path, item in present.items():
                    missing = self._missing(media_id, indexed, path, questions, copy_incomplete)
                    for question, source in missing.items():
                        names = (source.root, source.path)
                        self._apply(FileChange("copy", media_id, *names, question, item.root, item.rel))
                    n_copied += bool(missing)
        return PathChanges(n_renamed, n_copied, stored)

    def update_question_ids(self, ids: Mapping[tuple[str, str, str], str]) -> int:
        """Set the id of the rows of each question to its current one: questions are the same if their texts are.

        Args:
            ids: (question, model_id, settings_id) -> id.

        Returns:
            The number of questions whose rows had another id.
        """
        changes = [QuestionChange(QuestionKey(*question), question_id) for question, question_id in ids.items()]
        changes = [change for change in changes if self._index.question_ids.rename(change.question, change.question_id)]
        self._unsaved += changes
        return len(changes)

    def unread_name(self, path: str) -> tuple[str, str] | None:
        """Return root and path of the rows that a file got when it could not be read; None if it has none.

        Args:
            path: absolute path of the file; the rows may have another one that leads to the same file.
        """
        if self._unread is None:
            files = self._index.files(None).items()
            self._unread = {os.path.realpath(name): (file.root, file.path) for name, file in files}
        return self._unread.get(os.path.realpath(path)) if self._unread else None

    def copy_rows(
        self, media_id: str, source: MediaItem, target: MediaItem, questions: Iterable[tuple[str, str, str]]
    ) -> list[Status]:
        """Copy answers to a duplicate of a file, replacing the rows that the duplicate has for these questions.

        Args:
            media_id: digest of the content of both files.
            source: the file that has rows.
            target: the duplicate that gets copies.
            questions: (question, model_id, settings_id) of the rows to copy.

        Returns:
            The statuses of the copies.
        """
        copied: list[Status] = []
        names = (source.root, source.rel)
        for question in questions:
            change = FileChange("copy", media_id, *names, QuestionKey(*question), target.root, target.rel)
            copied += self._apply(change)
        return copied

    def removed(self, gone: Callable[[str], bool]) -> set[str]:
        """Return the media_ids of files that no longer exist.

        Args:
            gone: returns whether a path no longer exists.
        """
        return {media_id for media_id, *names in self._index.all_files() if media_id and gone(file_path(*names))}

    def prune(self, gone: Callable[[str], bool]) -> int:
        """Drop the rows of files that no longer exist. Returns the number of files.

        Args:
            gone: returns whether a path no longer exists.
        """
        files = [file for file in self._index.all_files() if gone(file_path(*file[1:]))]
        for media_id, root, path in files:
            self._apply(FileChange("drop", media_id, root, path))
        return len(files)

    def drop(self, answers: Iterable[tuple[str | None, str, str, tuple[str, str, str]]]) -> None:
        """Drop the rows that answer one question about one file.

        Args:
            answers: media_id, root, path, and (question, model_id, settings_id).
        """
        for media_id, root, path, question in answers:
            self._apply(FileChange("drop", media_id, root, path, QuestionKey(*question)))

    def drop_replaced(self, is_replaced: Callable[[str, str], bool]) -> int:
        """Drop failed and noted rows about earlier content of files. Returns the number of files.

        Args:
            is_replaced: returns whether the file at a path now has other content than a media_id.
        """
        found = [one for one in self._index.problems() if is_replaced(one[0], file_path(*one[1:3]))]
        for media_id, root, path, question in found:
            self._apply(FileChange("drop", media_id, root, path, question))
        return len({one[:3] for one in found})

    def rows_for(self, media_id: str | None) -> list[AnswerRow]:
        """Return all rows of a media_id in table order; for None, the rows of all files that could not be read.

        Reads the table's files from the start, so it suits single lookups and not a loop over all files.
        """
        rows = self._index.rows(media_id)
        wanted = {number for number, _, _ in rows}
        values: dict[int, AnswerRow] = {}
        start = 0
        unsaved = rows_to_frame(entry.row for entry in self._unsaved if isinstance(entry, RowChange))
        for batch in chain(self._storage.stored(), [unsaved]) if wanted else ():
            here = sorted(i for i in wanted if start <= i < start + batch.height)
            rows_here = self._index.question_ids.apply(batch[[i - start for i in here]])
            values |= zip(here, frame_to_rows(rows_here), strict=True)
            start += batch.height
            if len(values) == len(wanted):
                break
        return [replace(values[number], root=root, path=path) for number, root, path in rows]

    def counts(self) -> dict[str, int]:
        """Return the number of rows per status, without statuses that do not occur."""
        return self._index.counts()

    def checkpoint(self) -> bool:
        """Write all changes to the journal and sync them to disk. The table itself is not touched.

        Returns:
            True if there was anything to write.

        Raises:
            TableError: the disk is full, or the folder is not writable. The next call writes what this one could not.
        """
        if not self._unsaved:
            return False
        self._storage.append(change_log.to_frame(self._unsaved))
        self._unsaved = []
        return True

    def commit(self) -> bool:
        """Merge all changes into the table, atomically. Without changes, nothing is written.

        Returns:
            True if a file was written.

        Raises:
            TableError: the table cannot be written, or another process changed it since `load`. The old table is
                unchanged, and the finished rows are in the journal next to it, which the next run merges.
        """
        if self._loaded:
            self.checkpoint()
        written = self._storage.merge(self._index, write_empty=True)
        if written:
            self._cached_index = None
        return written

    @property
    def _index(self) -> RowIndex:
        if self._cached_index is None:
            self._cached_index = self._storage.read_index()
        return self._cached_index

    def _apply(self, change: FileChange) -> list[Status]:
        self._unsaved.append(change)
        return change_log.apply(self._index, change)

    def _missing(
        self,
        media_id: str,
        indexed: Mapping[str, IndexedFile],
        path: str,
        questions: Collection[tuple[str, str, str]] | None,
        copy_incomplete: bool,
    ) -> dict[QuestionKey, IndexedFile]:
        """Return the questions that are not completely answered for a file, and the duplicate to copy each from."""

        def is_complete(path: str, question: QuestionKey) -> bool:
            rows = self._index.segments(media_id, path, question)
            return rows is None or rows.is_complete

        own = indexed[path].questions if path in indexed else {}
        found: dict[QuestionKey, IndexedFile] = {}
        for complete in (True, False) if copy_incomplete else (True,):
            for other_path, other in indexed.items():
                for question in other.questions:
                    if other_path == path or not (questions is None or question in questions):
                        continue
                    is_missing = question not in own or (complete and not is_complete(path, question))
                    if is_missing and is_complete(other_path, question) == complete:
                        found.setdefault(question, other)
        return found


def new_table(rows: Iterable[AnswerRow], path: str | os.PathLike[str]) -> None:
    """Write rows as a new table, replacing an existing one.

    Raises:
        TableError: unknown suffix, or the table cannot be written.
    """
    formats.write(rows_to_frame(rows), path)
