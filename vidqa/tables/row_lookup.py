"""Find rows of a table by number or by file, and decide which sets of rows a prune drops. Scope: frames and tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import polars as pl

from vidqa.common.path_text import escape_path, unescape_path
from vidqa.errors import UsageError
from vidqa.tables.reader import TableReader
from vidqa.tables.schema import FILE_PATH, SCHEMA
from vidqa.tables.superseded import READ_COLUMNS, SET_COLUMNS, answer_sets, with_current

#: Columns that `first_rows` can add to those of the table.
NUMBER, CURRENT = "row", "current"


@dataclass(frozen=True)
class RowSelection:
    """Which rows to drop. Values of one kind are alternatives; rows must match all kinds that are given.

    Attributes:
        superseded: rows about older content of a path, or by a replaced model; see superseded.py.
        models: names or ids.
        questions: ids or texts.
        settings: ids.
    """

    superseded: bool = False
    models: Sequence[str] = ()
    questions: Sequence[str] = ()
    settings: Sequence[str] = ()


def first_rows(reader: TableReader, n_rows: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the first rows as dictionaries. File names have their original bytes.

    Args:
        reader: the table.
        n_rows: at most so many.
        columns: columns of `SCHEMA`, `row` (the number, from 1) and `current`, which needs a pass over the whole table.

    Raises:
        TableError: the table cannot be read.
    """
    stored = [name for name in columns if name in SCHEMA]
    extra = [name for name in SET_COLUMNS if name not in stored] if CURRENT in columns else []
    frame = reader.head(n_rows, [*stored, *extra] or ["status"]).with_row_index(NUMBER, 1)
    if CURRENT in columns:
        (frame,) = with_current([frame], answer_sets(reader.batches(READ_COLUMNS)))
    return [_unescaped(row) for row in frame.select(columns).iter_rows(named=True)]


def current_rows(reader: TableReader, batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield batches of a table without superseded rows.

    Args:
        reader: the table; it is read once more.
        batches: with all columns.
    """
    for batch in with_current(batches, answer_sets(reader.batches(READ_COLUMNS))):
        yield batch.filter(CURRENT).drop(CURRENT)


def numbered_row(reader: TableReader, number: int) -> dict[str, Any] | None:
    """Return a row by its number, with `row` and `current`; None if the table has fewer rows.

    Args:
        reader: the table.
        number: counted from 1.

    Raises:
        TableError: the table cannot be read.
    """
    start = 0
    for batch in reader.batches():
        if number <= start + batch.height:
            row = batch[number - start - 1]
            file = str(row.select(FILE_PATH).item())
            return next(found for found in _rows_about(reader, FILE_PATH.eq(file)) if found[NUMBER] == number)
        start += batch.height
    return None


def rows_of_file(reader: TableReader, path: str) -> list[dict[str, Any]]:
    """Return all rows about a file, with `row` and `current`.

    Args:
        reader: the table.
        path: as in the column `path`, or any path that leads to the file.

    Raises:
        TableError: the table cannot be read.
    """
    names = [escape_path(path), path]  # as a name, or as it is written in the table
    full = escape_path(os.path.abspath(path))
    return _rows_about(reader, pl.col("path").is_in(names) | FILE_PATH.eq(full))


def selected_sets(
    reader: TableReader, selection: RowSelection, is_gone: Callable[[str, str], bool] | None = None
) -> list[tuple[tuple[str | None, str, str, tuple[str, str, str]], int, str]]:
    """Return the answer sets that a prune drops.

    Args:
        reader: the table.
        selection: which rows to drop.
        is_gone: returns whether the file with a root and path was removed; None if that is no reason to drop rows.

    Returns:
        For each set: (media_id, root, path, (question, model_id, settings_id)), number of rows, and the reason: `gone`,
        `content`, `model` or `selected`.

    Raises:
        UsageError: no row has a model, question or settings_id of the selection.
        TableError: the table cannot be read.
    """
    names: dict[str, dict[str, set[str]]] = {"model_id": {}, "question": {}, "settings_id": {}}
    batches = _with_names(reader.batches([*READ_COLUMNS, "model", "question_id"]), names)
    sets = answer_sets(batches)
    for column, wanted, what in (
        ("model_id", selection.models, "model"),
        ("question", selection.questions, "question"),
        ("settings_id", selection.settings, "settings"),
    ):
        if wanted:
            sets = sets.filter(pl.col(column).is_in(sorted(_ids(names[column], wanted, what))))
    gone = _gone_files(sets, is_gone) if is_gone else []
    is_superseded = pl.col("reason").is_not_null() & pl.lit(selection.superseded)
    any_reason = selection.superseded or is_gone is not None
    in_gone = pl.struct("root", "path").is_in(pl.Series(gone, dtype=_FILE_DTYPE).implode())
    reason = (
        pl.when(in_gone).then(pl.lit("gone")).when(is_superseded).then(pl.col("reason"))
        .otherwise(pl.lit(None if any_reason else "selected", pl.String()))
    )  # fmt: skip
    found = sets.with_columns(reason.alias("reason")).filter(pl.col("reason").is_not_null())
    return [
        ((media_id, unescape_path(root), unescape_path(path), tuple(question)), n_rows, why)
        for media_id, root, path, *question, n_rows, why in found.iter_rows()
    ]


_FILE_DTYPE = pl.Struct({"root": pl.String(), "path": pl.String()})


def _gone_files(sets: pl.DataFrame, is_gone: Callable[[str, str], bool]) -> list[dict[str, str]]:
    files = sets.select("root", "path").unique(maintain_order=True).iter_rows(named=True)
    return [file for file in files if is_gone(unescape_path(file["root"]), unescape_path(file["path"]))]


def _with_names(batches: Iterable[pl.DataFrame], names: dict[str, dict[str, set[str]]]) -> Iterator[pl.DataFrame]:
    """Pass on batches, and note for each id which names it has. An id is one of its own names."""
    for batch in batches:
        for column, other in (("model_id", "model"), ("question", "question_id"), ("settings_id", "settings_id")):
            for identity, name in batch.select(pl.col(column), pl.col(other).alias("name")).unique().iter_rows():
                names[column].setdefault(identity, {identity}).update({name} - {None})
        yield batch


def _ids(names: dict[str, set[str]], wanted: Iterable[str], what: str) -> set[str]:
    found: set[str] = set()
    for one in wanted:
        matching = {identity for identity, own in names.items() if one in own}
        if not matching:
            names_in_table = sorted({min(own - {identity} or {identity}) for identity, own in names.items()})
            raise UsageError(
                f"no rows with the {what} {one!r}", hint=f"the table has {', '.join(names_in_table) or 'no rows'}"
            )
        found |= matching
    return found


def _rows_about(reader: TableReader, is_wanted: pl.Expr) -> list[dict[str, Any]]:
    """Return matching rows. `is_wanted` must select all rows of a file or none."""
    frames, start = [], 0
    for batch in reader.batches():
        frames.append(batch.with_row_index(NUMBER, start + 1).filter(is_wanted))
        start += batch.height
    frame = pl.concat(frames) if frames else pl.DataFrame(schema={NUMBER: pl.UInt32(), **SCHEMA})
    (marked,) = with_current([frame], answer_sets([frame]))
    return [_unescaped(row) for row in marked.iter_rows(named=True)]


def _unescaped(row: dict[str, Any]) -> dict[str, Any]:
    """Return file names with their original bytes, and numbers that are not finite, which JSON cannot hold, as None."""
    row = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
    return {name: unescape_path(value) if name in ("path", "root") else value for name, value in row.items()}
