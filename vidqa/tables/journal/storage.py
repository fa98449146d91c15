"""The files of a table and its journal: build the row index from them, and merge the journal into the table.

Stored rows are numbered: the rows of the table's files in order, then the rows of the journal's parts. `RowIndex`
records which rows are dropped, renamed or copied; this module writes the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain, islice
from operator import or_

import polars as pl

from vidqa.common.path_text import escape_surrogates
from vidqa.errors import TableError
from vidqa.tables import formats
from vidqa.tables.destination import FILE_ROWS, Destination
from vidqa.tables.formats import BATCH_ROWS
from vidqa.tables.journal import change_log
from vidqa.tables.journal.merge import Merge, rebatch
from vidqa.tables.journal.parts import FileState, JournalFolder, file_state
from vidqa.tables.journal.row_index import RowIndex
from vidqa.tables.journal.row_keys import KEY_COLUMNS
from vidqa.tables.provenance import Provenance, read_provenance, write_sidecar
from vidqa.tables.schema import SCHEMA
from vidqa.tables.spreadsheet_csv import is_for_spreadsheets


class TableStorage:
    """One table on disk, with the journal next to it.

    Args:
        path: a file whose suffix selects the format, or the folder of a dataset; see `Destination`.
        for_spreadsheets: escape formulas when a CSV file is written. An existing file with escapes keeps them.

    Raises:
        TableError: unknown suffix.
    """

    def __init__(self, path: str | os.PathLike[str], *, for_spreadsheets: bool = False) -> None:
        self.destination = Destination.of(path)
        self._journal = JournalFolder(self.destination.path, self.destination.folder)
        self._for_spreadsheets = for_spreadsheets
        self._files: list[tuple[str, int]] = []  # files of the table and their numbers of rows
        self._pending: list[str] = []  # parts of the journal that are not yet merged
        self._state: dict[str, FileState | None] = {}
        #: Provenance of the rows that `append` writes.
        self.added_provenance = Provenance()

    def open(self) -> RowIndex:
        """Index the rows of the table and of the journal that an interrupted run left. Writes nothing.

        Raises:
            TableError: the file is not a vidqa table, its folder is not writable, or a part of the journal is damaged.
        """
        self.destination.check()
        self._state = self._state_on_disk()
        self._pending = self._journal.names()
        return self.read_index()

    def read_index(self) -> RowIndex:
        """Index all stored rows. Raises the same errors as `open`."""
        self._files = []
        index = RowIndex(self._key_batches())
        for name in self._pending:
            change_log.replay(self._journal.read(name), index)
        return index

    def stored(self) -> Iterator[pl.DataFrame]:
        """Yield all stored rows in the order of their numbers."""
        for name, _ in self._files:
            yield from formats.batches(self._journal.current(name))
        yield from self._added()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yield all rows as the next merge would write them. Writes nothing, and needs no permission to write.

        Args:
            columns: columns to yield; None for all.

        Raises:
            TableError: the file is not a vidqa table, or a part of the journal is damaged.
        """
        if not self.has_journal:
            for name in self.destination.names():
                yield from formats.batches(self.destination.folder / name, columns)
            return
        self._pending = self._journal.names()
        merge = Merge(self.read_index())
        for batch in chain(merge.kept(self.stored(), 0), self._copies(merge)):
            yield batch.select(columns or list(SCHEMA))

    def provenance(self) -> Provenance:
        """Return the provenance of all rows, those of the journal included. Empty for tables of earlier versions."""
        files = (
            read_provenance(self._journal.current(name), self.destination.path) for name in self.destination.names()
        )
        return reduce(or_, files, Provenance()) | self._journal.provenance(self._journal.names())

    @property
    def has_journal(self) -> bool:
        """Whether a running or interrupted run has a journal next to the table."""
        return self._journal.folder.is_dir()

    def n_pending(self) -> int:
        """Return the number of rows in the journal that are not yet merged."""
        return sum(batch.height for batch in self._added())

    def n_in_journal(self) -> int:
        """Return the number of rows that runs have finished and not merged yet. Does not need `open`."""
        return sum(change_log.added_rows(self._journal.read(name)).height for name in self._journal.names())

    def append(self, log: pl.DataFrame) -> None:
        """Write log entries to the journal and sync them to disk.

        Raises:
            TableError: the disk is full, or the folder is not writable.
        """
        self._pending.append(self._journal.append(log, self.added_provenance))

    def merge(self, index: RowIndex, *, write_empty: bool) -> bool:
        """Write the table that an index of all stored rows describes, and remove the journal.

        Args:
            index: from `read_index`, with the changes since then.
            write_empty: create a missing table even if there are no rows to write.

        Returns:
            True if a file was written. Without a journal, an existing table is not touched.

        Raises:
            TableError: the table cannot be written, or another process changed it since `open`. Table and journal
                are unchanged.
        """
        if self._state_on_disk() != self._state:
            table = escape_surrogates(str(self.destination.path))
            what = f"{table} was changed by another process during the run; it is left as it is"
            raise TableError(what, hint="run again: the finished rows are then added to it")
        must_write = bool(self._pending) or (write_empty and not self.destination.names())
        try:
            if self.destination.is_dataset and must_write:
                self.destination.path.mkdir(exist_ok=True)
            self._journal.finish()  # a publication that a crash interrupted
            if must_write:
                write = self._write_dataset if self.destination.is_dataset else self._write_file
                all_provenance = self.provenance()
                provenance = all_provenance.restricted(index.questions())
                self._write_sidecar(all_provenance)  # before the new table, and without what is dropped after it
                self._journal.publish(list(write(Merge(index), provenance)), self._pending)
                self._write_sidecar(provenance)
        except OSError as error:
            kept = f"finished rows are safe in {escape_surrogates(str(self._journal.folder))}; the next run merges them"
            raise formats.write_error(self.destination.path, error, kept) from error
        self._state = self._state_on_disk()
        if must_write:
            self._pending = []
        return must_write

    def _write_sidecar(self, provenance: Provenance) -> None:
        if not self.destination.is_dataset and formats.format_of(self.destination.path) != "parquet":
            write_sidecar(self.destination.path, provenance)

    def _write_file(self, merge: Merge, provenance: Provenance) -> Iterator[str]:
        name = self.destination.path.name
        rows = rebatch(chain(merge.kept(self.stored(), 0), self._copies(merge)), BATCH_ROWS)
        escaped = self._for_spreadsheets or is_for_spreadsheets(self.destination.path)
        self._journal.new_file(name, rows, provenance, for_spreadsheets=escaped)
        yield name

    def _write_dataset(self, merge: Merge, provenance: Provenance) -> Iterator[str]:
        """Rewrite the files with dropped or renamed rows, then write added and copied rows to new files."""
        start = 0
        for name, n_rows in self._files:
            if merge.changes(start, start + n_rows):
                rows = merge.kept(formats.batches(self._journal.current(name)), start)
                self._journal.new_file(name, rows, provenance)
                yield name
            start += n_rows
        added = chain(merge.kept(self._added(), start), self._copies(merge))
        batches = (batch for batch in rebatch(added, BATCH_ROWS) if batch.height)
        first = next(batches, None)
        if first is None and not self._files:
            first = pl.DataFrame(schema=SCHEMA)  # a run without rows leaves an empty table
        for name in self.destination.new_names():
            if first is None:
                return
            rows = chain([first], islice(batches, FILE_ROWS // BATCH_ROWS - 1))
            self._journal.new_file(name, rows, provenance)
            yield name
            first = next(batches, None)

    def _copies(self, merge: Merge) -> Iterator[pl.DataFrame]:
        """Yield the copied rows. If there are any, the table is read a second time."""
        if merge.has_copies:
            yield from merge.copied(self.stored(), 0)

    def _key_batches(self) -> Iterator[pl.DataFrame]:
        for name in self.destination.names():
            n_rows = 0
            for batch in formats.batches(self._journal.current(name), KEY_COLUMNS):
                n_rows += batch.height
                yield batch
            self._files.append((name, n_rows))

    def _added(self) -> Iterator[pl.DataFrame]:
        for name in self._pending:
            yield change_log.added_rows(self._journal.read(name))

    def _state_on_disk(self) -> dict[str, FileState | None]:
        return {name: file_state(self.destination.folder / name) for name in self.destination.names()}
