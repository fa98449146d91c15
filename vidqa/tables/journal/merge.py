"""Apply the changes of a row index to stored rows, one batch at a time. Scope: frames; no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl

from vidqa.common.path_text import escape_path
from vidqa.tables.journal.row_index import RowIndex


class Merge:
    """The changes of an index, prepared for batches of stored rows.

    Args:
        index: is not changed.
    """

    def __init__(self, index: RowIndex) -> None:
        self._dropped = index.dropped()
        self._renamed, self._new_names = index.renamed()
        self._copied, self._copy_names = index.copies()
        self._question_ids = index.question_ids

    def changes(self, start: int, stop: int) -> bool:
        """Return whether any of the stored rows `start` to `stop` - 1 is dropped or gets a new name or id."""
        a, b = np.searchsorted(self._renamed, (start, stop))
        return bool(b > a or self._dropped[start:stop].any() or self._question_ids.changes(start, stop))

    @property
    def has_copies(self) -> bool:
        """Whether any stored row is copied."""
        return len(self._copied) > 0

    def kept(self, batches: Iterable[pl.DataFrame], start: int) -> Iterator[pl.DataFrame]:
        """Yield the rows that are not dropped, under their current names and question ids.

        Args:
            batches: stored rows in order.
            start: number of the first row.

        Yields:
            One frame per batch.
        """
        for batch in batches:
            stop = start + batch.height
            a, b = np.searchsorted(self._renamed, (start, stop))
            if b > a:
                batch = _renamed(batch, self._renamed[a:b] - start, self._new_names[a:b])
            batch = self._question_ids.apply(batch)
            dropped = self._dropped[start:stop]
            yield batch.filter(pl.Series(~dropped)) if dropped.any() else batch
            start = stop

    def copied(self, batches: Iterable[pl.DataFrame], start: int) -> Iterator[pl.DataFrame]:
        """Yield copies of stored rows, under the names of the files they are copied to.

        Args:
            batches: stored rows in order.
            start: number of the first row.

        Yields:
            One frame per batch that has rows to copy.
        """
        for batch in batches:
            stop = start + batch.height
            a, b = np.searchsorted(self._copied, (start, stop))
            if b > a:
                copies = self._question_ids.apply(batch[self._copied[a:b] - start])
                yield _renamed(copies, np.arange(b - a), self._copy_names[a:b])
            start = stop


def rebatch(batches: Iterable[pl.DataFrame], n_rows: int) -> Iterator[pl.DataFrame]:
    """Concatenate small batches.

    Args:
        batches: frames with any number of rows each.
        n_rows: minimum number of rows of a yielded batch, except the last one.

    Yields:
        The same rows in the same order.
    """
    waiting: list[pl.DataFrame] = []
    n = 0
    for batch in batches:
        waiting.append(batch)
        n += batch.height
        if n >= n_rows:
            yield pl.concat(waiting)
            waiting, n = [], 0
    if waiting:
        yield pl.concat(waiting)


def _renamed(batch: pl.DataFrame, rows: np.ndarray, names: list[tuple[str, str]]) -> pl.DataFrame:
    roots, paths = ([escape_path(name) for name in some] for some in zip(*names, strict=True))
    return batch.with_columns(batch["root"].clone().scatter(rows, roots), batch["path"].clone().scatter(rows, paths))
