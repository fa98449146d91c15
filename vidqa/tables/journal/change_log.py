"""What a run does to a table, step by step, as a data frame; and the same steps done to an index again.

A step is a row that was added, or a file that was renamed, copied or dropped. The frame has the columns of the contract
and three more: `op`, and for `move` and `copy` the new `to_root` and `to_path`. So a part of the log is an ordinary
Parquet file, from which even a stranger gets the rows: those whose `op` is `row`. Knows no file.
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
from vidqa.tables.journal.row_index import Index
from vidqa.tables.journal.row_keys import Cell, location
from vidqa.tables.schema import SCHEMA, rows_to_frame

Op = Literal["row", "move", "copy", "drop"]
_OPS = ("row", "move", "copy", "drop")
_EXTRA = {"op": pl.String(), "to_root": pl.String(), "to_path": pl.String()}
LOG_SCHEMA: dict[str, pl.DataType] = SCHEMA | _EXTRA
#: Columns that part files of earlier versions do not have.
_ADDED_LATER = ("n_repeated_frames",)
_KEYS = ["op", "media_id", "root", "path", *Cell._fields, "status", "to_root", "to_path"]


@dataclass(frozen=True)
class Change:
    """A file that was renamed, copied (the rows that answer `cell`) or dropped (those, or all where it is None)."""

    op: Op
    media_id: str | None
    root: str
    path: str
    cell: Cell | None = None
    to_root: str | None = None
    to_path: str | None = None


def to_frame(steps: Iterable[AnswerRow | Change]) -> pl.DataFrame:
    """Steps in their order, with the columns of `LOG_SCHEMA`."""
    frames = []
    for is_row, some in groupby(steps, lambda step: isinstance(step, AnswerRow)):
        if is_row:
            rows = rows_to_frame(cast(Iterable[AnswerRow], some))
            extra = [pl.lit("row" if name == "op" else None, dtype).alias(name) for name, dtype in _EXTRA.items()]
            frames.append(rows.with_columns(extra))
        else:
            frames.append(_changes_frame(cast(Iterable[Change], some)))
    return pl.concat(frames) if frames else pl.DataFrame(schema=LOG_SCHEMA)


def rows_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Only the rows of a log, as they go into the table."""
    return frame.filter(pl.col("op") == "row").select(*SCHEMA)


def check(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """The frame, if it is a log.

    Raises:
        TableError: it is none.
    """
    if missing := [name for name in _ADDED_LATER if name not in frame.columns]:
        nulls = [pl.lit(None, LOG_SCHEMA[name]).alias(name) for name in missing]
        frame = frame.with_columns(nulls).select(*(name for name in LOG_SCHEMA if name in {*frame.columns, *missing}))
    if dict(frame.schema) != LOG_SCHEMA or not frame["op"].is_in(_OPS).all():
        hint = "move this file away to go on without its rows; they are then asked again"
        raise TableError(f"{source}: not a part of a table that this version of vidqa wrote", hint=hint)
    return frame


def replay(frame: pl.DataFrame, index: Index) -> None:
    """Do the steps of a log to an index."""
    for (op, media_id, root, path, *_), some in groupby(frame.select(_KEYS).iter_rows(), lambda step: step[:4]):
        root, path = unescape_path(root), unescape_path(path)
        if op == "row":
            add_rows(index, media_id, root, path, [(Cell(*step[4:7]), step[7]) for step in some])
            continue
        for step in some:
            cell = None if step[4] is None else Cell(*step[4:7])
            to = [unescape_path(step[k]) if step[k] is not None else None for k in (8, 9)]
            change(index, Change(op, media_id, root, path, cell, *to))


def add_rows(index: Index, media_id: str | None, root: str, path: str, rows: Sequence[tuple[Cell, Status]]) -> None:
    """Add the rows of one file; those that it has for the same cells, or has from when it was unreadable, go."""
    place = location(root, path)
    for cell in {cell: None for cell, _ in rows}:
        index.drop(None, place, cell)
        index.drop(media_id, place, cell)
    index.append(media_id, root, path, rows)


def change(index: Index, step: Change) -> list[Status]:
    """Do one step that adds no values. Returns the statuses of the rows that `copy` made."""
    place = location(step.root, step.path)
    if step.op == "drop":
        index.drop(step.media_id, place, step.cell)
        return []
    assert step.media_id is not None and step.to_root is not None and step.to_path is not None
    if step.op == "move":
        index.move(step.media_id, place, step.to_root, step.to_path)
        return []
    numbers = index.numbers(step.media_id, place, step.cell)
    if not numbers:
        return []
    index.drop(None, location(step.to_root, step.to_path), step.cell)
    index.drop(step.media_id, location(step.to_root, step.to_path), step.cell)
    return index.copy(numbers, step.to_root, step.to_path)


def _changes_frame(changes: Iterable[Change]) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in _KEYS}
    for step in changes:
        cell = step.cell or (None, None, None)
        names = [None if n is None else escape_path(n) for n in (step.root, step.path, step.to_root, step.to_path)]
        values = (step.op, step.media_id, *names[:2], *cell, None, *names[2:])
        for name, value in zip(_KEYS, values, strict=True):
            columns[name].append(value)
    frame = pl.DataFrame(columns, schema={name: LOG_SCHEMA[name] for name in _KEYS})
    return frame.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in LOG_SCHEMA.items() if name not in _KEYS
    ).select(*LOG_SCHEMA)
