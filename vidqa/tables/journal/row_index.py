"""Index of a table's rows by media_id and file, in an in-memory SQLite database.

Every stored row has a number: first the rows of the written table in order, then the rows of the journal. A record of
the index belongs to one file and has its rows as runs: consecutive stored rows that answer the same question and have
the same state. A file with many segments therefore needs no more memory than a file with one. A file whose rows are not
together has several records, which are combined when they are read.

Dropping, renaming and copying rows changes only the index. `merge` applies the result when the table is written.
Scope: keys only; the index never reads or writes files.
"""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, repeat
from typing import NamedTuple

import numpy as np
import polars as pl

from vidqa.common.path_text import escape_path, unescape_path
from vidqa.records import Status
from vidqa.tables.journal.question_ids import QuestionIds
from vidqa.tables.journal.row_keys import FILE_COLUMNS, STATUSES, QuestionKey, RowEntry, RowState, file_path
from vidqa.tables.journal.segment_rows import SegmentIndex, SegmentRows

# `content` is the media_id, or `_UNREAD` and the path for a file that could not be read. Names are escaped, because
# SQLite cannot store lone surrogates. `is_changed` marks records that have renamed or copied rows.
# Records are appended and indexed afterwards: inserting a million records in the order of their content takes twice as
# long.
_TABLE = "CREATE TABLE files (content TEXT, root INT, path TEXT, runs BLOB, is_changed INT)"
_INDEX = "CREATE INDEX files_by_content ON files (content)"
_ADD = "INSERT INTO files VALUES (?, ?, ?, ?, ?)"
_UNREAD = "\0"

# A run in `runs`: number of the first row, then code and number of rows. The code combines the number of the question,
# the origin of the rows, whether they are noted, and the number of their status.
_RUN = np.dtype([("first_row", "<u8"), ("code", "<u4"), ("n_rows", "<u4")])
_RUN_STRUCT = struct.Struct("<QII")
_STATUS, _NOTED, _ORIGIN, _QUESTION = 1, 8, 16, 64  # factors within a code
_STORED, _RENAMED, _COPY = range(3)  # origin: rows under their stored names, of a renamed file, copied from another
assert len(STATUSES) <= _NOTED


class IndexedFile(NamedTuple):
    """A file that has rows."""

    root: str
    path: str
    questions: dict[QuestionKey, None]  # an ordered set


class NamedRows(NamedTuple):
    """Stored rows, and the root and path under which each is written."""

    rows: np.ndarray  # int64 [n]: row numbers, ascending
    names: list[tuple[str, str]]  # [n]: root and path


class _Run(NamedTuple):
    first_row: int
    code: int
    n_rows: int

    @property
    def status(self) -> Status:
        return STATUSES[self.code % _NOTED]

    @property
    def is_noted(self) -> bool:
        return bool(self.code % _ORIGIN // _NOTED)

    @property
    def origin(self) -> int:
        return self.code % _QUESTION // _ORIGIN

    @property
    def question(self) -> int:
        return self.code // _QUESTION

    def with_origin(self, origin: int) -> _Run:
        return self._replace(code=self.code + (origin - self.origin) * _ORIGIN)


class _File(NamedTuple):
    content: str
    root: str
    path: str
    runs: list[_Run]


class RowIndex:
    """Rows of a table, looked up by media_id.

    Several threads may use it, but only one at a time.

    Args:
        batches: the written table in order, with the columns `KEY_COLUMNS`.
    """

    def __init__(self, batches: Iterable[pl.DataFrame] = ()) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = OFF")  # the index is rebuilt for every run
        self._db.execute(_TABLE)
        self._roots: dict[str, int] = {}
        self._root_names: list[str] = []
        self._questions: dict[QuestionKey, int] = {}
        self._question_keys: list[QuestionKey] = []
        self._counts: Counter[Status] = Counter()
        self._question_counts: Counter[int] = Counter()
        self._segments = SegmentIndex()
        self.question_ids = QuestionIds()
        self._dropped: list[_Run] = []
        self.n_stored = 0
        for batch in batches:
            if batch.height:
                self._add_batch(batch)
        self._db.execute(_INDEX)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def counts(self) -> dict[str, int]:
        """Return the number of rows per status, without statuses that do not occur."""
        return {status: self._counts[status] for status in STATUSES if self._counts[status]}

    def questions(self) -> list[QuestionKey]:
        """Return the questions that have rows."""
        return [key for number, key in enumerate(self._question_keys) if self._question_counts[number] > 0]

    def states(self, media_id: str, question: QuestionKey, path: str | None = None) -> Counter[RowState]:
        """Count the rows that answer a question about a media_id, or about the file at `path` only, by their states."""
        number = self._questions.get(question)
        found: Counter[RowState] = Counter()
        for run in (run for file in self._files(media_id, path) for run in file.runs if run.question == number):
            found[RowState(run.status, run.is_noted)] += run.n_rows
        return found

    def segments(self, media_id: str | None, path: str, question: QuestionKey) -> SegmentRows | None:
        """Return which segments of the file at `path` answer a question, if some do not or have failed."""
        return self._segments.get(media_id, path, question)

    def has_failed(self, media_id: str | None, path: str, question: QuestionKey) -> bool:
        """Return whether the file at `path` has a failed row for a question."""
        number = self._questions.get(question)
        runs = (run for file in self._files(media_id, path) for run in file.runs)
        return any(run.question == number and run.status == "failed" for run in runs)

    def files(self, media_id: str | None) -> dict[str, IndexedFile]:
        """Return the files with a media_id that have rows, by path; for None, the files that could not be read."""
        found: dict[str, IndexedFile] = {}
        for file in self._files(media_id):
            indexed = found.setdefault(file_path(file.root, file.path), IndexedFile(file.root, file.path, {}))
            indexed.questions.update(dict.fromkeys(self._question_keys[run.question] for run in file.runs))
        return found

    def all_files(self) -> Iterator[tuple[str | None, str, str]]:
        """Yield media_id, root and path of every file that has rows."""
        for content, root, path in self._db.execute("SELECT DISTINCT content, root, path FROM files"):
            yield (
                None if content.startswith(_UNREAD) else content,
                unescape_path(self._root_names[root]),
                unescape_path(path),
            )

    def problems(self) -> Iterator[tuple[str, str, str, QuestionKey]]:
        """Yield media_id, root, path and question of all rows that failed or are noted."""
        for content, root, path, packed in self._db.execute("SELECT content, root, path, runs FROM files"):
            if content.startswith(_UNREAD):
                continue
            runs = map(_Run._make, _RUN_STRUCT.iter_unpack(packed))
            for number in dict.fromkeys(run.question for run in runs if run.is_noted or run.status == "failed"):
                names = unescape_path(self._root_names[root]), unescape_path(path)
                yield content, *names, self._question_keys[number]

    def rows(self, media_id: str | None) -> list[tuple[int, str, str]]:
        """Return (number of the stored row, root, path) of every row of a media_id, in the order of the table.

        Args:
            media_id: None for the rows of all files that could not be read.
        """
        runs = [(run, file.root, file.path) for file in self._files(media_id) for run in file.runs]
        runs.sort(key=lambda found: (found[0].origin == _COPY, found[0].first_row))
        return [(run.first_row + i, root, path) for run, root, path in runs for i in range(run.n_rows)]

    def append(self, media_id: str | None, root: str, path: str, rows: Sequence[RowEntry]) -> None:
        """Add the next stored rows, which are all about one file."""
        runs: list[_Run] = []
        for question, state, _, _ in rows:
            code = self._question_number(question) * _QUESTION + STATUSES.index(state.status) + state.is_noted * _NOTED
            if runs and runs[-1].code == code:
                runs[-1] = runs[-1]._replace(n_rows=runs[-1].n_rows + 1)
            else:
                runs.append(_Run(self.n_stored, code, 1))
            self.n_stored += 1
        self._add(_content(media_id, root, path), root, path, runs)
        self._segments.add(media_id, file_path(root, path), rows)

    def drop(
        self, media_id: str | None, path: str, question: QuestionKey | None = None, *, only_failed: bool = False
    ) -> None:
        """Remove the rows of the file at `path`, or only those that answer `question`, or only failed ones."""
        number = None if question is None else self._questions.get(question, -1)
        self._segments.drop(media_id, path, question, only_failed=only_failed)
        for file in self._files(media_id, path):
            dropped = [
                run
                for run in file.runs
                if (number is None or run.question == number) and (run.status == "failed" or not only_failed)
            ]
            if dropped:
                self._remove(file)
                self._dropped += [run for run in dropped if run.origin != _COPY]
                self._add(file.content, file.root, file.path, [run for run in file.runs if run not in dropped])

    def move(self, media_id: str, old_path: str, root: str, path: str) -> None:
        """Rename the file at `old_path`: its rows get the names `root` and `path`."""
        for file in self._files(media_id, old_path):
            self._remove(file)
            runs = [run if run.origin == _COPY else run.with_origin(_RENAMED) for run in file.runs]
            self._add(media_id, root, path, runs)
        self._segments.move(media_id, old_path, file_path(root, path))

    def copy(self, media_id: str, source: str, question: QuestionKey | None, root: str, path: str) -> list[Status]:
        """Copy rows to another file with the same content, replacing the rows that it has for `question`.

        Args:
            media_id: digest of the content of both files.
            source: path of the file that has rows.
            question: which rows are copied; None for all.
            root: root of the other file.
            path: path of the other file, relative to `root`.

        Returns:
            The statuses of the copied rows.
        """
        number = None if question is None else self._questions.get(question, -1)
        runs = [run for file in self._files(media_id, source) for run in file.runs]
        copies = [run.with_origin(_COPY) for run in runs if number is None or run.question == number]
        if copies:
            self.drop(None, file_path(root, path), question)
            self.drop(media_id, file_path(root, path), question)
            self._add(media_id, root, path, copies)
            self._segments.copy(media_id, source, question, file_path(root, path))
        return [run.status for run in copies for _ in range(run.n_rows)]

    def dropped(self) -> np.ndarray:
        """Return a mask of the stored rows that are not written, bool [n_stored]."""
        dropped = np.zeros(self.n_stored, bool)
        for run in self._dropped:
            dropped[run.first_row : run.first_row + run.n_rows] = True
        return dropped

    def renamed(self) -> NamedRows:
        """Return the stored rows of renamed files, with their new names."""
        return self._named(_RENAMED)

    def copies(self) -> NamedRows:
        """Return the stored rows that are copied, with the names of the copies. A row may occur more than once."""
        return self._named(_COPY)

    def _add_batch(self, batch: pl.DataFrame) -> None:
        """Add the next rows of the written table."""
        codes = self._codes(batch)
        self._segments.add_batch(batch)
        self.question_ids.add_batch(batch, self.n_stored)
        counts = np.bincount(codes % _NOTED, minlength=len(STATUSES)).tolist()
        self._counts.update(dict(zip(STATUSES, counts, strict=True)))
        self._question_counts.update(dict(enumerate(np.bincount(codes // _QUESTION).tolist())))
        is_new = batch.select(pl.any_horizontal(pl.col(c).ne_missing(pl.col(c).shift(1)) for c in FILE_COLUMNS))
        starts_file = is_new.to_series().to_numpy().copy()
        starts_file[0] = True
        file_rows = np.flatnonzero(starts_file)
        run_rows = np.flatnonzero(starts_file | (codes != np.roll(codes, 1)))
        runs = np.empty(len(run_rows), _RUN)
        runs["first_row"], runs["code"] = self.n_stored + run_rows, codes[run_rows]
        runs["n_rows"] = np.diff(run_rows, append=batch.height)
        packed, borders = runs.tobytes(), _RUN.itemsize * np.searchsorted(run_rows, [*file_rows, batch.height])
        files = batch.select(FILE_COLUMNS)[file_rows]
        runs_of_files = [packed[a:b] for a, b in pairwise(borders.tolist())]
        roots = files["root"].replace_strict({name: self._root_number(name) for name in files["root"].unique()})
        contents = files["media_id"].to_list()
        if files["media_id"].null_count():
            contents = [
                _content(media_id, unescape_path(root), unescape_path(path))
                for media_id, root, path in files.iter_rows()
            ]
        self._db.execute("BEGIN")
        self._db.executemany(_ADD, zip(contents, roots.to_list(), files["path"].to_list(), runs_of_files, repeat(0)))
        self._db.execute("COMMIT")
        self.n_stored += batch.height

    def _codes(self, batch: pl.DataFrame) -> np.ndarray:
        """Return question and state of every row as the code of a run, int64 [rows]."""
        keys = list(QuestionKey._fields)
        questions = batch.select(keys).unique(maintain_order=True)
        numbers = [self._question_number(QuestionKey(*values)) for values in questions.iter_rows()]
        numbered = questions.with_columns(pl.Series("number", numbers, dtype=pl.Int64))
        number = batch.select(keys).join(numbered, on=keys, how="left", maintain_order="left")["number"]
        status = batch["status"].cast(pl.Enum(STATUSES)).to_physical().cast(pl.Int64)
        failed, is_partial = pl.col("status") == "failed", pl.col("error_kind").eq_missing("partial")
        noted = pl.when(failed).then(is_partial).otherwise(pl.col("media_note").is_not_null())  # as in `RowState.of`
        is_noted = batch.select(noted.cast(pl.Int64)).to_series()
        codes: np.ndarray = (number * _QUESTION + is_noted * _NOTED + status).to_numpy()
        return codes

    def _files(self, media_id: str | None, path: str | None = None) -> list[_File]:
        """Return the files with a media_id, or those that could not be read, in table order; or only that at `path`."""
        query = "SELECT content, root, path, runs FROM files WHERE "
        if media_id is None and path is None:
            found = self._db.execute(query + "content >= ? AND content < ?", (_UNREAD, "\x01"))
        else:
            content = media_id if media_id is not None else _UNREAD + escape_path(path or "")
            found = self._db.execute(query + "content = ?", (content,))
        files: dict[tuple[str, str, str], _File] = {}
        for content, root, name, packed in found.fetchall():
            names = unescape_path(self._root_names[root]), unescape_path(name)
            if path is None or file_path(*names) == path:
                file = files.setdefault((content, *names), _File(content, *names, []))
                file.runs.extend(_Run(*values) for values in _RUN_STRUCT.iter_unpack(packed))
        if len(files) <= 1:
            return list(files.values())
        return sorted(files.values(), key=lambda file: min((run.origin == _COPY, run.first_row) for run in file.runs))

    def _named(self, origin: int) -> NamedRows:
        rows: list[int] = []
        names: list[tuple[str, str]] = []
        for root, path, packed in self._db.execute("SELECT root, path, runs FROM files WHERE is_changed"):
            for run in map(_Run._make, _RUN_STRUCT.iter_unpack(packed)):
                if run.origin == origin:
                    rows += range(run.first_row, run.first_row + run.n_rows)
                    names += [(unescape_path(self._root_names[root]), unescape_path(path))] * run.n_rows
        order = np.argsort(np.array(rows, np.int64), kind="stable")
        return NamedRows(np.array(rows, np.int64)[order], [names[i] for i in order])

    def _add(self, content: str, root: str, path: str, runs: list[_Run]) -> None:
        if runs:
            packed = b"".join(_RUN_STRUCT.pack(*run) for run in runs)
            is_changed = any(run.origin != _STORED for run in runs)
            self._db.execute(
                _ADD, (content, self._root_number(escape_path(root)), escape_path(path), packed, is_changed)
            )
            self._count(runs, 1)

    def _remove(self, file: _File) -> None:
        key = (file.content, self._root_number(escape_path(file.root)), escape_path(file.path))
        self._db.execute("DELETE FROM files WHERE content = ? AND root = ? AND path = ?", key)
        self._count(file.runs, -1)

    def _count(self, runs: Iterable[_Run], sign: int) -> None:
        for run in runs:
            self._counts[run.status] += sign * run.n_rows
            self._question_counts[run.question] += sign * run.n_rows

    def _question_number(self, question: QuestionKey) -> int:
        if question not in self._questions:
            self._questions[question] = len(self._question_keys)
            self._question_keys.append(question)
        return self._questions[question]

    def _root_number(self, root: str) -> int:
        """Return the number of an escaped root."""
        if root not in self._roots:
            self._roots[root] = len(self._root_names)
            self._root_names.append(root)
        return self._roots[root]


def _content(media_id: str | None, root: str, path: str) -> str:
    return media_id if media_id is not None else _UNREAD + escape_path(file_path(root, path))
