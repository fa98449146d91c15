"""`table prune`: drop rows of removed files, superseded rows, and rows of a model, question or settings_id."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vidqa.common.file_lock import FileLock
from vidqa.errors import UsageError
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.pruning import removed_files
from vidqa.pipeline.run.retry_policy import RetryPolicy
from vidqa.tables.reader import TableReader
from vidqa.tables.row_lookup import RowSelection, selected_sets
from vidqa.tables.table import Table

#: Number of files that a report names.
_EXAMPLES = 10


@dataclass(frozen=True)
class TablePruneReport:
    """What was, or would be, dropped.

    Attributes:
        n_rows: number of dropped rows.
        n_files: number of files that lose rows.
        reasons: `gone` (the file was removed), `content` (older content of a path), `model` (a replaced model),
            `selected` -> rows.
        n_left: rows that remain.
        unavailable: folders that are missing or empty, as on an unmounted disk. Rows of their files stay.
        examples: some of the files.
        is_done: False for a dry run.
    """

    n_rows: int
    n_files: int
    reasons: dict[str, int]
    n_left: int
    unavailable: tuple[str, ...]
    examples: tuple[str, ...]
    is_done: bool


def prune_table(
    path: str | os.PathLike[str],
    selection: RowSelection,
    *,
    gone: bool = False,
    dry_run: bool = True,
    reporter: Reporter = QUIET,
) -> TablePruneReport:
    """Drop rows of a table.

    Args:
        path: the table.
        selection: which rows. If `gone` or `superseded` are set, only rows are dropped to which one of them applies.
        gone: drop the rows of files that no longer exist.
        dry_run: change nothing.
        reporter: receives messages.

    Raises:
        UsageError: nothing was selected, or no row has a model, question or settings_id of the selection.
        LockedError: a run is writing the table.
        TableError: the table cannot be read or written; it is then unchanged.
    """
    if not (gone or selection.superseded or selection.models or selection.questions or selection.settings):
        raise UsageError(
            "--gone, --superseded, --model, --question or --settings is required",
            hint=f"vidqa table prune {os.fspath(path)} --superseded",
        )
    reader = TableReader(path)
    with nullcontext() if dry_run else FileLock(reader.path):
        table = None if dry_run else Table(path).load()
        if table is not None and (n := table.recover()):
            reporter.message(f"recovered {n:,} rows of an interrupted run")
            reader = TableReader(path)
        is_gone, unavailable = _gone_files()
        found = selected_sets(reader, selection, is_gone if gone else None)
        n_rows = sum(n for _, n, _ in found)
        n_left = reader.count() - n_rows
        if table is not None and found:
            table.drop(answers for answers, _, _ in found)
            table.commit()
            _drop_failure_counts(table)
    reasons: Counter[str] = Counter()
    for _, n, reason in found:
        reasons[reason] += n
    files = dict.fromkeys(os.path.join(root, name) for (_, root, name, _), _, _ in found)
    examples = tuple(list(files)[:_EXAMPLES])
    return TablePruneReport(n_rows, len(files), dict(reasons), n_left, tuple(unavailable), examples, not dry_run)


def _drop_failure_counts(table: Table) -> None:
    """Drop the failure counts of rows that are no longer in the table, as a run does."""
    retries = RetryPolicy(Path(table.path)).load()
    retries.drop_unless(lambda key: table.status(*key) is not None)
    retries.save()


def _gone_files() -> tuple[Callable[[str, str], bool], list[str]]:
    """Return a function that returns whether a file was removed, and a list that it fills with unavailable roots."""
    unavailable: list[str] = []

    @cache
    def removed_below(root: str) -> Callable[[str], bool] | None:
        try:
            with os.scandir(root) as entries:
                if next(entries, None) is not None:
                    return removed_files([root])
        except OSError:
            pass
        unavailable.append(root)
        return None

    def is_gone(root: str, path: str) -> bool:
        is_removed = removed_below(root)
        return is_removed is not None and is_removed(os.path.join(root, path))

    return is_gone, unavailable
