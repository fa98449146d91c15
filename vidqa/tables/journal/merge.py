"""Stored rows and what has become of them -> the rows that are written. One batch at a time; knows no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl

from vidqa.common.path_text import escape_path
from vidqa.tables.journal.row_index import Index


class Merge:
    """What an index says of the stored rows, made ready to be applied to batches of them.

    Args:
        index: is not changed.
    """

    def __init__(self, index: Index) -> None:
        self._dropped = index.dropped()
        renamed = sorted(index.renamed().items())
        self._renamed = np.array([number for number, _ in renamed], np.int64)
        self._names = [names for _, names in renamed]
        copies = index.copies()
        self._copied = np.array([number for number, _, _ in copies], np.int64)
        self._copy_names = [names for _, *names in copies]

    def changes(self, start: int, stop: int) -> bool:
        """True when any of the stored rows start ... stop - 1 is dropped or renamed."""
        a, b = np.searchsorted(self._renamed, (start, stop))
        return bool(b > a or self._dropped[start:stop].any())

    @property
    def has_copies(self) -> bool:
        """True when any stored row is to be copied."""
        return len(self._copied) > 0

    def kept(self, frames: Iterable[pl.DataFrame], start: int) -> Iterator[pl.DataFrame]:
        """The rows that stay, under their present names.

        Args:
            frames: stored rows in their order.
            start: number of the first.
        """
        for frame in frames:
            stop = start + frame.height
            a, b = np.searchsorted(self._renamed, (start, stop))
            if b > a:
                frame = _named(frame, self._renamed[a:b] - start, self._names[a:b])
            gone = self._dropped[start:stop]
            yield frame.filter(pl.Series(~gone)) if gone.any() else frame
            start = stop

    def copied(self, frames: Iterable[pl.DataFrame], start: int) -> Iterator[pl.DataFrame]:
        """The copies of stored rows, under the names of their files. Args as for `kept`."""
        for frame in frames:
            stop = start + frame.height
            a, b = np.searchsorted(self._copied, (start, stop))
            if b > a:
                made = frame[self._copied[a:b] - start]
                yield _named(made, np.arange(b - a), self._copy_names[a:b])
            start = stop


def gathered(frames: Iterable[pl.DataFrame], n_rows: int) -> Iterator[pl.DataFrame]:
    """The same rows in fewer frames, each of about `n_rows`."""
    waiting: list[pl.DataFrame] = []
    n = 0
    for frame in frames:
        waiting.append(frame)
        n += frame.height
        if n >= n_rows:
            yield pl.concat(waiting)
            waiting, n = [], 0
    if waiting:
        yield pl.concat(waiting)


def _named(frame: pl.DataFrame, at: np.ndarray, names: Iterable[Iterable[str]]) -> pl.DataFrame:
    roots, paths = ([escape_path(name) for name in some] for some in zip(*names, strict=True))
    return frame.with_columns(frame["root"].clone().scatter(at, roots), frame["path"].clone().scatter(at, paths))
