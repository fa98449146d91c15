"""Merge whole tables, and write a table in another format. Tables are read in batches; memory does not grow with them.

Two rows of different tables are the same if file, content, segment, question text, model and settings are equal. Of the
same rows one is kept: a row that did not fail is preferred, then the newest. A failed row for a complete file is
dropped if another table has answers about that file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from math import ceil

import numpy as np
import polars as pl

from vidqa.common import atomic_io
from vidqa.common.display import display_path
from vidqa.common.output_paths import check_output_parent
from vidqa.errors import TableError, UsageError
from vidqa.tables import formats
from vidqa.tables.destination import FILE_ROWS, Destination
from vidqa.tables.formats import BATCH_ROWS
from vidqa.tables.journal.merge import rebatch
from vidqa.tables.provenance import Provenance, read_provenance, write_sidecar
from vidqa.tables.reader import TableReader
from vidqa.tables.schema import FILE_PATH, SCHEMA

#: Rows that are compared at a time. More rows need several passes over the tables.
PASS_ROWS = 1_000_000
_KEY_COLUMNS = (
    *("media_id", "root", "path", "start_s", "n_segments", "status", "created_at"),
    *("question", "model_id", "settings_id"),
)


def rows_to_keep(readers: Sequence[TableReader], *, pass_rows: int = PASS_ROWS) -> np.ndarray:
    """Return which rows of several tables a merged table has.

    Args:
        readers: the tables. Of rows that are equally good, that of the last table is kept.
        pass_rows: rows that are compared at a time.

    Returns:
        bool [n_rows]: a mask over the rows of all tables, one after the other.

    Raises:
        TableError: a table cannot be read.
    """
    n_rows = sum(reader.count() for reader in readers)
    n_passes = max(1, ceil(n_rows / pass_rows))
    keep = np.zeros(n_rows, bool)
    for number in range(n_passes):
        batches = (batch for reader in readers for batch in reader.batches(_KEY_COLUMNS))
        keep[_best(pl.concat(_keys(batches, number, n_passes)))] = True
    return keep


def merged_rows(
    readers: Sequence[TableReader], keep: np.ndarray, count: Callable[[int], None]
) -> Iterator[pl.DataFrame]:
    """Yield the rows of several tables that a mask selects, in order.

    Args:
        readers: the tables.
        keep: from `rows_to_keep`.
        count: receives the number of rows that were read, for each batch.

    Raises:
        TableError: a table was changed in the meantime.
    """
    start = 0
    error = TableError("a table changed while it was being merged", hint="run again when no run is writing it")
    for batch in (batch for reader in readers for batch in reader.batches()):
        mask = keep[start : start + batch.height]
        if len(mask) < batch.height:
            raise error
        yield batch.filter(pl.Series(mask))
        start += batch.height
        count(batch.height)
    if start != len(keep):
        raise error


def check_target(out: str | os.PathLike[str], *, replace: bool, inputs: Sequence[TableReader] = ()) -> Destination:
    """Check, before anything is read, that a table can be written.

    Args:
        out: the table to write.
        replace: an existing file may be replaced.
        inputs: tables that are read; one of them may be the table to write.

    Raises:
        UsageError: the suffix is unknown, the folder does not exist, or the table exists and may not be replaced.
        TableError: the folder is not writable.
    """
    try:
        target = Destination.of(out)
    except TableError as error:
        raise UsageError(error.what, hint=error.hint) from error
    name = display_path(os.fspath(out))
    check_output_parent(out, "")
    is_input = any(reader.path == target.path for reader in inputs)
    if target.is_dataset and target.path.exists() and (not target.path.is_dir() or any(target.path.iterdir())):
        raise UsageError(f"{name} exists already", hint="a dataset is written into a new folder: use another --out")
    if target.path.exists() and not target.is_dataset and not (replace or is_input):
        raise UsageError(f"{name} exists already", hint="--replace, or another --out")
    parts = target.path.with_name(f"{target.path.name}.parts")
    if parts.is_dir():
        what = f"{display_path(str(parts))} has rows of an interrupted run, which are not in {name} yet"
        raise TableError(what, hint="repeat the command of that run first, or use another --out")
    target.check()
    return target


def write_table(
    batches: Iterable[pl.DataFrame],
    target: Destination,
    provenance: Provenance,
    *,
    for_spreadsheets: bool = False,
) -> None:
    """Write a whole table atomically; an existing file is replaced.

    Args:
        batches: its rows.
        target: from `check_target`.
        provenance: of the rows.
        for_spreadsheets: escape formulas in CSV.

    Raises:
        TableError: the disk is full, or the folder is not writable; an existing table is unchanged.
    """
    metadata = provenance.metadata()
    try:
        if target.is_dataset:
            _write_dataset(batches, target, metadata)
            return
        has_sidecar = formats.format_of(target.path) != "parquet"
        if has_sidecar:  # complete for the table that is replaced, too, until the new one is there
            write_sidecar(target.path, read_provenance(target.path) | provenance)
        rows = rebatch(batches, BATCH_ROWS)
        formats.write_batches(rows, target.path, for_spreadsheets=for_spreadsheets, metadata=metadata)
        if has_sidecar:
            write_sidecar(target.path, provenance)
    except OSError as error:
        raise formats.write_error(target.path, error, "the tables that were read are unchanged") from error


def counted(batches: Iterable[pl.DataFrame], count: Callable[[int], None]) -> Iterator[pl.DataFrame]:
    """Yield batches unchanged, and report the number of rows of each.

    Args:
        batches: rows of a table.
        count: receives the number of rows of each batch.
    """
    for batch in batches:
        yield batch
        count(batch.height)


def _write_dataset(batches: Iterable[pl.DataFrame], target: Destination, metadata: dict[str, str]) -> None:
    rows = (batch for batch in rebatch(batches, BATCH_ROWS) if batch.height)
    with atomic_io.temporary_folder(target.path) as folder:
        os.chmod(folder, 0o777 & ~atomic_io.current_umask())
        first = next(rows, pl.DataFrame(schema=SCHEMA))
        for name in target.new_names():
            file = chain([first], islice(rows, FILE_ROWS // BATCH_ROWS - 1))
            formats.write_batches(file, folder / name, metadata=metadata)
            following = next(rows, None)
            if following is None:
                break
            first = following
        folder.rename(target.path)  # an empty folder at the target is replaced
        atomic_io.fsync_folder(target.path.parent)


def _keys(batches: Iterable[pl.DataFrame], number: int, n_passes: int) -> Iterator[pl.DataFrame]:
    """Yield the digests of one pass: all rows that could be about the same question and file are in the same pass.

    Two digests of 64 bits make it impossible in practice that different rows look the same.
    """
    file = FILE_PATH.alias("file")
    cell = pl.struct(file, "question", "model_id", "settings_id")
    row = pl.struct(file, "question", "model_id", "settings_id", "media_id", pl.col("start_s").cast(pl.Float64))
    start = 0
    for batch in batches:
        keys = batch.lazy().select(
            (pl.int_range(pl.len(), dtype=pl.Int64) + start).alias("number"),
            *(cell.hash(seed).alias(f"cell{seed}") for seed in (1, 2)),
            *(row.hash(seed).alias(f"row{seed}") for seed in (1, 2)),
            pl.col("media_id").hash(1).alias("media"),
            pl.col("media_id").is_null().alias("is_unread"),
            pl.col("start_s").is_null().alias("is_whole"),
            (pl.col("status") != "failed").alias("is_answered"),
            pl.col("n_segments"),
            pl.col("created_at"),
        )
        yield keys.filter(pl.col("cell1") % n_passes == number).collect()
        start += batch.height


def _best(keys: pl.DataFrame) -> np.ndarray:
    """Return the numbers of the rows that are kept."""
    by_quality = keys.sort("is_answered", "created_at", "number", nulls_last=False)
    best = by_quality.unique(["row1", "row2"], keep="last")
    cell, media = ["cell1", "cell2"], ["cell1", "cell2", "media"]
    answered = best.filter("is_answered")
    complete = answered.group_by(media).agg(pl.len().alias("n"), pl.col("n_segments").max())
    complete = complete.filter(pl.col("n_segments").is_null() | (pl.col("n") >= pl.col("n_segments")))
    failed = pl.col("is_whole") & ~pl.col("is_answered")
    of_answered_file = best.filter(failed & ~pl.col("is_unread")).join(complete, on=media, how="semi")
    unread = best.filter(pl.col("is_unread")).join(answered, on=cell, how="semi")
    dropped = pl.concat([of_answered_file["number"], unread["number"]])
    numbers: np.ndarray = best.filter(~pl.col("number").is_in(dropped.implode()))["number"].to_numpy()
    return numbers
