"""Read a table of any format in batches, the finished rows of an interrupted or running run included."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from vidqa.common.display import display_path
from vidqa.errors import TableError
from vidqa.tables import formats
from vidqa.tables.journal.storage import TableStorage
from vidqa.tables.provenance import Provenance
from vidqa.tables.schema import SCHEMA


class TableReader:
    """A table on disk. Nothing is written, and no permission to write is needed.

    Args:
        path: a file whose suffix selects the format, or the folder of a dataset.

    Raises:
        TableError: unknown suffix, or there is no table.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._storage = TableStorage(path)
        destination = self._storage.destination
        self.path: Path = destination.path
        self.format = "dataset" if destination.is_dataset else formats.format_of(destination.path)
        if not destination.names() and not self._storage.has_journal:
            what = "contains no table" if self.path.is_dir() else "no such table"
            hint = "a dataset is a folder of files part-000001.parquet" if self.path.is_dir() else "check the path"
            raise TableError(f"{display_path(self.name)}: {what}", hint=hint)

    def batches(self, columns: Sequence[str] | None = None) -> Generator[pl.DataFrame, None, None]:
        """Yield the rows in order. Memory does not grow with the table.

        Args:
            columns: columns of `SCHEMA`; None for all.

        Raises:
            TableError: the file is not a vidqa table.
        """
        with _errors_of_reading():
            yield from self._storage.rows(columns)

    def head(self, n_rows: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the first rows.

        Args:
            n_rows: at most so many.
            columns: as for `batches`.

        Raises:
            TableError: as `batches`.
        """
        names = list(SCHEMA) if columns is None else list(columns)
        frames, n = [pl.DataFrame(schema={name: SCHEMA[name] for name in names})], 0
        with closing(self.batches(names)) as batches:
            for batch in batches:
                frames.append(batch.head(n_rows - n))
                n += frames[-1].height
                if n >= n_rows:
                    break
        return pl.concat(frames)

    def count(self) -> int:
        """Return the number of rows."""
        return sum(batch.height for batch in self.batches(["status"]))

    @cached_property
    def provenance(self) -> Provenance:
        """What the ids of the rows stand for; empty for tables of earlier versions."""
        return self._storage.provenance()

    @property
    def n_pending(self) -> int:
        """Number of rows in the journal of an interrupted or running run, which are not yet in the table's files."""
        with _errors_of_reading():
            return self._storage.n_in_journal()

    @property
    def n_bytes(self) -> int:
        """Size of the table's files on disk."""
        destination = self._storage.destination
        return sum((destination.folder / name).stat().st_size for name in destination.names())


@contextmanager
def _errors_of_reading() -> Iterator[Any]:
    """Replace hints that are about writing a table."""
    try:
        yield
    except TableError as error:
        hint = error.hint if error.hint and "--out" not in error.hint else None
        raise TableError(error.what, hint=hint or "name a table that `vidqa describe` wrote") from error
