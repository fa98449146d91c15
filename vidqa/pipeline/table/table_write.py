"""`table merge` and `table convert`: whole tables in, one table out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from vidqa.common.file_lock import FileLock
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.tables.combine import check_target, counted, merged_rows, rows_to_keep, write_table
from vidqa.tables.reader import TableReader
from vidqa.tables.row_lookup import current_rows

_PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TableWriteReport:
    """Numbers of rows that were read and written."""

    n_read: int
    n_written: int


def merge_tables(
    tables: Sequence[_PathLike],
    out: _PathLike,
    *,
    replace: bool = False,
    for_spreadsheets: bool = False,
    reporter: Reporter = QUIET,
) -> TableWriteReport:
    """Merge tables by the key of their rows: an answer rather than a failure, then the newest row.

    Args:
        tables: at least one; they are not changed, unless one of them is `out`.
        out: the table to write.
        replace: replace an existing table.
        for_spreadsheets: escape formulas in CSV.
        reporter: shows progress.

    Raises:
        UsageError: `out` exists, or its suffix or folder is wrong.
        LockedError: a run is writing `out`.
        TableError: a table cannot be read, or `out` cannot be written.
    """
    readers = [TableReader(path) for path in tables]
    target = check_target(out, replace=replace, inputs=readers)
    with FileLock(target.path):
        keep = rows_to_keep(readers)
        provenance = reduce(or_, (reader.provenance for reader in readers))
        with reporter.progress(len(keep), "row"):
            rows = merged_rows(readers, keep, reporter.advance)
            write_table(rows, target, provenance, for_spreadsheets=for_spreadsheets)
    return TableWriteReport(len(keep), int(keep.sum()))


def convert_table(
    table: _PathLike,
    out: _PathLike,
    *,
    only_current: bool = False,
    replace: bool = False,
    for_spreadsheets: bool = False,
    reporter: Reporter = QUIET,
) -> TableWriteReport:
    """Write a table in another format.

    Args:
        table: is not changed, unless it is `out`.
        out: the table to write; its suffix selects the format.
        only_current: skip superseded rows.
        replace: as for `merge_tables`.
        for_spreadsheets: as for `merge_tables`.
        reporter: as for `merge_tables`.

    Raises:
        VidqaError: as for `merge_tables`.
    """
    reader = TableReader(table)
    target = check_target(out, replace=replace)
    n_written = 0

    def count(n: int) -> None:
        nonlocal n_written
        n_written += n

    with FileLock(target.path):
        n_read = reader.count()
        with reporter.progress(n_read, "row"):
            batches = counted(reader.batches(), reporter.advance)
            rows = current_rows(reader, batches) if only_current else batches
            write_table(counted(rows, count), target, reader.provenance, for_spreadsheets=for_spreadsheets)
    return TableWriteReport(n_read, n_written)
