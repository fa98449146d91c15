"""The changes of a run as data frames (the change log), and replaying them on a row index.

An entry is an added row, a file whose rows were renamed, copied or dropped, or a question with a new id. The frame has
the columns of a table and three more: `op`, and for `move` and `copy` the new `to_root` and `to_path`. Each part of the
log is thus an ordinary Parquet file, and any reader can extract its rows: the entries whose `op` is `row` or `add`. A
`row` replaces the rows that the file has for the question; `add` adds further segments to them.
Scope: frames and the index; parts.py stores the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, cast

import polars as pl

from vidqa.common.path_text import escape_path, unescape_path
from vidqa.errors import TableError
from vidqa.records import AnswerRow, Status
from vidqa.tables.journal.row_index import RowIndex
from vidqa.tables.journal.row_keys import FILE_COLUMNS, KEY_COLUMNS, QuestionKey, RowEntry, file_path
from vidqa.tables.schema import SCHEMA, rows_to_frame

_ROW_OPS = ("row", "add")
_OPS = (*_ROW_OPS, "move", "copy", "drop", "question")
_EXTRA = {"op": pl.String(), "to_root": pl.String(), "to_path": pl.String()}
LOG_SCHEMA: dict[str, pl.DataType] = SCHEMA | _EXTRA
#: Columns that part files of earlier versions do not have.
_ADDED_LATER = ("n_segments", "n_repeated_frames", "media_note")
_KEYS = ["op", *KEY_COLUMNS, "to_root", "to_path"]
_N_FILE_KEYS = 1 + len(FILE_COLUMNS)


@dataclass(frozen=True)
class RowChange:
    """An added row; `op` as in the log."""

    row: AnswerRow
    op: Literal["row", "add"]


@dataclass(frozen=True)
class FileChange:
    """A change to the rows of one file that needs no new answers.

    Attributes:
        op: `move` renames the file, `copy` copies its rows to another file, `drop` removes them.
        media_id: digest of the file's content; None for a file that could not be read.
        root: root of the file.
        path: path relative to `root`.
        question: restricts `copy` and `drop` to the rows that answer it; None for all rows.
        to_root: new root, for `move` and `copy`.
        to_path: new path, for `move` and `copy`.
        only_failed: restricts `drop` to failed rows.
    """

    op: Literal["move", "copy", "drop"]
    media_id: str | None
    root: str
    path: str
    question: QuestionKey | None = None
    to_root: str | None = None
    to_path: str | None = None
    only_failed: bool = False


@dataclass(frozen=True)
class QuestionChange:
    """A new id for all rows that answer a question."""

    question: QuestionKey
    question_id: str


def to_frame(entries: Iterable[RowChange | FileChange | QuestionChange]) -> pl.DataFrame:
    """Return a frame of log entries in order, with the columns `LOG_SCHEMA`."""
    frames = []
    for op, some in groupby(entries, lambda entry: entry.op if isinstance(entry, RowChange) else None):
        if op is not None:
            rows = rows_to_frame(change.row for change in cast(Iterable[RowChange], some))
            extra = [pl.lit(op if name == "op" else None, dtype).alias(name) for name, dtype in _EXTRA.items()]
            frames.append(rows.with_columns(extra))
        else:
            frames.append(_changes_frame(cast(Iterable[FileChange | QuestionChange], some)))
    return pl.concat(frames) if frames else pl.DataFrame(schema=LOG_SCHEMA)


def added_rows(log: pl.DataFrame) -> pl.DataFrame:
    """Return the added rows of a log, with the columns of a table."""
    return log.filter(pl.col("op").is_in(_ROW_OPS)).select(*SCHEMA)


def check(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Return the frame if it is a change log; columns that earlier versions did not write are filled with nulls.

    Args:
        frame: as read from a file.
        source: name of the file, for the error.

    Raises:
        TableError: the frame is not a change log of this version.
    """
    if missing := [name for name in _ADDED_LATER if name not in frame.columns]:
        frame = frame.with_columns(pl.lit(None, LOG_SCHEMA[name]).alias(name) for name in missing)
        frame = frame.select(name for name in LOG_SCHEMA if name in frame.columns)
    if dict(frame.schema) != LOG_SCHEMA or not frame["op"].is_in(_OPS).all():
        hint = "move this file away to continue without its rows; their questions are then asked again"
        raise TableError(f"{source}: not a part file of this version of vidqa", hint=hint)
    return frame


def replay(log: pl.DataFrame, index: RowIndex) -> None:
    """Apply the entries of a log to an index."""
    for (op, media_id, root, path, *_), some in groupby(
        log.select(_KEYS).iter_rows(), lambda entry: entry[:_N_FILE_KEYS]
    ):
        if op == "question":
            for entry in some:
                index.question_ids.rename(QuestionKey(*entry[4:7]), entry[-3])
            continue
        root, path = unescape_path(root), unescape_path(path)
        if op in _ROW_OPS:
            rows = [RowEntry.from_columns(entry[_N_FILE_KEYS:]) for entry in some]
            add_rows(index, media_id, root, path, rows, op)
            continue
        for entry in some:
            question = None if entry[4] is None else QuestionKey(*entry[4:7])
            to_root, to_path = (unescape_path(name) if name is not None else None for name in entry[-2:])
            only_failed = op == "drop" and entry[7] == "failed"
            apply(index, FileChange(op, media_id, root, path, question, to_root, to_path, only_failed))


def add_rows(
    index: RowIndex, media_id: str | None, root: str, path: str, rows: Sequence[RowEntry], op: Literal["row", "add"]
) -> None:
    """Add the rows of one file to an index.

    With `row`, they replace the file's rows for the same questions, including those added when the file could not be
    read.
    """
    for question in dict.fromkeys(row.question for row in rows) if op == "row" else ():
        index.drop(None, file_path(root, path), question)
        index.drop(media_id, file_path(root, path), question)
    index.append(media_id, root, path, rows)


def apply(index: RowIndex, change: FileChange) -> list[Status]:
    """Apply a file change to an index. Returns the statuses of the rows that a `copy` created."""
    path = file_path(change.root, change.path)
    if change.op == "drop":
        index.drop(change.media_id, path, change.question, only_failed=change.only_failed)
        return []
    assert change.media_id is not None and change.to_root is not None and change.to_path is not None
    if change.op == "move":
        index.move(change.media_id, path, change.to_root, change.to_path)
        return []
    return index.copy(change.media_id, path, change.question, change.to_root, change.to_path)


def _changes_frame(changes: Iterable[FileChange | QuestionChange]) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in _KEYS}
    for change in changes:
        values: dict[str, str | None] = dict(
            zip(QuestionKey._fields, change.question or (None, None, None), strict=True)
        )
        if isinstance(change, QuestionChange):
            values |= {"op": "question", "question_id": change.question_id}
        else:
            values |= {"op": change.op, "media_id": change.media_id, "status": "failed" if change.only_failed else None}
            names = {name: getattr(change, name) for name in ("root", "path", "to_root", "to_path")}
            values |= {name: None if value is None else escape_path(value) for name, value in names.items()}
        for name in _KEYS:
            columns[name].append(values.get(name))
    frame = pl.DataFrame(columns, schema={name: LOG_SCHEMA[name] for name in _KEYS})
    return frame.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in LOG_SCHEMA.items() if name not in _KEYS
    ).select(*LOG_SCHEMA)
