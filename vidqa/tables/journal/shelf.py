"""The files of a table and the parts beside them: stored rows -> an index, an index -> new files.

Stored rows have numbers: those of the table's files in order, then those of the parts. Knows targets, parts and how
they are merged; does not know why a row is dropped, renamed or copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice

import polars as pl

from vidqa.common.path_text import escape_surrogates
from vidqa.errors import TableError
from vidqa.tables import formats
from vidqa.tables.destination import FILE_ROWS, Destination
from vidqa.tables.formats import BATCH_ROWS
from vidqa.tables.journal import change_log
from vidqa.tables.journal.merge import Merge, gathered
from vidqa.tables.journal.parts import RowParts, State, state_of
from vidqa.tables.journal.row_index import Index
from vidqa.tables.journal.row_keys import KEY_COLUMNS, Keys
from vidqa.tables.schema import SCHEMA


class Shelf:
    """Where one table lies.

    Args:
        path: a file whose suffix picks the format, or the folder of a data set; see `Destination`.

    Raises:
        TableError: unknown suffix.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.target = Destination.of(path)
        self._parts = RowParts(self.target.path, self.target.folder)
        self._files: list[tuple[str, int]] = []  # the table's files and their rows
        self._saved: list[str] = []  # parts that are not yet in them
        self._state: dict[str, State | None] = {}

    def open(self) -> Index:
        """Read the keys of the table and of the parts that an interrupted run left. Writes nothing.

        Raises:
            TableError: it is no vidqa table, its folder cannot take one, or a part is damaged.
        """
        self.target.check()
        self._state = self._state_on_disk()
        self._saved = self._parts.names()
        return self.read_index()

    def read_index(self) -> Index:
        """The index of all stored rows. Raises as `open`."""
        self._files = [(name, 0) for name in self.target.names()]
        index = Index(Keys(self._key_frames))
        for name in self._saved:
            change_log.replay(self._parts.read(name), index)
        return index

    def stored(self) -> Iterator[pl.DataFrame]:
        """All stored rows in the order of their numbers."""
        for name, _ in self._files:
            yield from formats.batches(self._parts.current(name))
        yield from self._logged()

    @property
    def has_parts(self) -> bool:
        """True when a run at work, or one that was interrupted, has left anything beside the table."""
        return self._parts.folder.is_dir()

    def n_waiting(self) -> int:
        """Rows in the parts."""
        return sum(frame.height for frame in self._logged())

    def append(self, steps: pl.DataFrame) -> None:
        """Bring steps of the log to the disk.

        Raises:
            TableError: no room, or the folder cannot be written.
        """
        self._saved.append(self._parts.append(steps))

    def merge(self, index: Index, *, even_without_rows: bool) -> bool:
        """Let the table be what an index of all stored rows says.

        Args:
            index: as `read_index` gives it, with the changes since.
            even_without_rows: make a table where there is none, even if there is nothing to put into it.

        Returns:
            True when a file was written; without parts, a table that is there is not touched.

        Raises:
            TableError: it cannot be written, or somebody else wrote it since `open`. It is untouched, and so are the
                parts.
        """
        if self._state_on_disk() != self._state:
            what = f"{escape_surrogates(str(self.target.path))} was changed by somebody else during the run; it is left as it is"
            raise TableError(what, hint="run again: what was finished is then added to it")
        written = bool(self._saved) or (even_without_rows and not self.target.names())
        try:
            if self.target.is_dataset and written:
                self.target.path.mkdir(exist_ok=True)
            self._parts.finish()  # a publication that a crash left half done
            if written:
                changes = Merge(index)
                names = list(self._write_dataset(changes) if self.target.is_dataset else self._write_file(changes))
                self._parts.publish(names, self._saved)
        except OSError as error:
            kept = (
                f"finished rows are safe in {escape_surrogates(str(self._parts.folder))}, and the next run merges them"
            )
            raise formats.write_error(self.target.path, error, kept) from error
        self._state = self._state_on_disk()
        if written:
            self._saved = []
        return written

    def _write_file(self, merge: Merge) -> Iterator[str]:
        frames = chain(merge.kept(self.stored(), 0), self._copies(merge))
        self._parts.new_file(self.target.path.name, gathered(frames, BATCH_ROWS))
        yield self.target.path.name

    def _write_dataset(self, merge: Merge) -> Iterator[str]:
        """Files in which rows were dropped or renamed, then new ones with what the parts and the copies bring."""
        start = 0
        for name, n_rows in self._files:
            if merge.changes(start, start + n_rows):
                self._parts.new_file(name, merge.kept(formats.batches(self._parts.current(name)), start))
                yield name
            start += n_rows
        new = chain(merge.kept(self._logged(), start), self._copies(merge))
        frames = (frame for frame in gathered(new, BATCH_ROWS) if frame.height)
        first = next(frames, None)
        if first is None and not self._files:
            first = pl.DataFrame(schema=SCHEMA)  # a run without rows leaves a table too
        for name in self.target.new_names():
            if first is None:
                return
            self._parts.new_file(name, chain([first], islice(frames, FILE_ROWS // BATCH_ROWS - 1)))
            yield name
            first = next(frames, None)

    def _copies(self, merge: Merge) -> Iterator[pl.DataFrame]:
        """The table is read a second time for them, and only then."""
        if merge.has_copies:
            yield from merge.copied(self.stored(), 0)

    def _key_frames(self) -> Iterator[pl.DataFrame]:
        for k, (name, _) in enumerate(self._files):
            n_rows = 0
            for frame in formats.batches(self._parts.current(name), KEY_COLUMNS):
                n_rows += frame.height
                yield frame
            self._files[k] = (name, n_rows)

    def _logged(self) -> Iterator[pl.DataFrame]:
        for name in self._saved:
            yield change_log.rows_of(self._parts.read(name))

    def _state_on_disk(self) -> dict[str, State | None]:
        return {name: state_of(self.target.folder / name) for name in self.target.names()}
