"""The table of a run: which rows it has, which are new, and the files that hold them. Asks nobody anything.

A row is done when media_id, question text, model_id and settings_id are equal; the segmentation is part of settings_id.
All rows of one file for one question are added together, so that their presence means done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import chain

from vidqa.records import AnswerRow, MediaItem, Status
from vidqa.tables import formats
from vidqa.tables.journal import change_log
from vidqa.tables.journal.change_log import Change
from vidqa.tables.journal.row_index import Index
from vidqa.tables.journal.row_keys import Cell, Keys, location
from vidqa.tables.journal.shelf import Shelf
from vidqa.tables.schema import frame_to_rows, rows_to_frame

# What counts for a file whose segments ended differently: the gravest.
_GRAVITY: dict[str, int] = {"ok": 0, "empty": 1, "truncated": 2, "skipped": 3, "failed": 4}


@dataclass(frozen=True)
class PathChanges:
    """What `Table.update_paths` did, in files."""

    n_renamed: int
    n_copied: int


class Table:
    """A table on disk and the changes that a run makes to it: `checkpoint` makes them durable, `commit` merges them.

    Only keys are held in memory, and what was added since the last checkpoint.

    Args:
        path: where it lies or will lie; the suffix picks Parquet, CSV, JSONL or Arrow. A name that ends in a slash, or
            a folder that is there, is a data set of Parquet files. A symbolic link is followed.

    Raises:
        TableError: unknown suffix.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._shelf = Shelf(path)
        self.path = self._shelf.target.path
        self._index: Index | None = Index(Keys(list))
        self._steps: list[AnswerRow | Change] = []  # not yet on the disk
        self._added: set[tuple[str | None, str, Cell]] = set()
        self._loaded = False

    def load(self) -> Table:
        """Read what the table has, and what an interrupted run left beside it. Writes nothing.

        Changes that were not brought to the disk are forgotten.

        Raises:
            TableError: it is no vidqa table (it is left as it is), or its folder cannot take one.
        """
        self._added, self._steps = set(), []
        self._index, self._loaded = self._shelf.open(), True
        return self

    def __len__(self) -> int:
        """Rows, those not yet committed included."""
        return len(self._known)

    def recover(self) -> int:
        """After `load`: merge what an interrupted run left beside the table, and remove what it left half done.

        Returns:
            How many rows that run had finished.

        Raises:
            TableError: as `commit`.
        """
        if not self._shelf.has_parts:
            return 0
        n = self._shelf.n_waiting()
        self._shelf.merge(self._known, even_without_rows=False)
        self._index = None
        return n

    def done(self, media_id: str | None, question: str, model_id: str, settings_id: str) -> Status | None:
        """How a question about a content ended, or None when it was not yet asked.

        Where several rows answer it (segments, files with the same content), the gravest status counts: failed,
        skipped, truncated, empty, ok. A file that could not even be read (media_id None) is never done.
        """
        if media_id is None:
            return None
        found = self._known.statuses(media_id, Cell(question, model_id, settings_id))
        return max(found, key=lambda s: _GRAVITY[s], default=None)

    def has_failed(self, media_id: str | None, root: str, path: str, cell: tuple[str, str, str]) -> bool:
        """Whether a file has a failed row that `add` or `copy_rows` would replace.

        Args:
            media_id: content; None for a file that could not be read.
            root: as in its rows.
            path: as in its rows.
            cell: (question, model_id, settings_id).
        """
        return self._known.has_failed(media_id, location(root, path), Cell(*cell))

    def add(self, rows: Iterable[AnswerRow]) -> None:
        """Add rows: for each file and question all of them at once.

        Rows that the table has for the same file, content, question, model and settings are replaced, which is how a
        retry mends failed ones; so are those from when the file could not even be read.

        Raises:
            ValueError: the same was added before since `load`: rows would get lost or doubled.
        """
        groups: dict[tuple[str | None, str, Cell], list[AnswerRow]] = {}
        for row in rows:
            cell = Cell(row.question, row.model_id, row.settings_id)
            groups.setdefault((row.media_id, location(row.root, row.path), cell), []).append(row)
        twice = groups.keys() & self._added
        if twice:
            raise ValueError(
                f"rows of one file and question must be added together, got more for {min(map(str, twice))}"
            )
        for (media_id, _, cell), group in groups.items():
            first = group[0]
            change_log.add_rows(self._known, media_id, first.root, first.path, [(cell, row.status) for row in group])
            self._steps += group
        self._added.update(groups)  # `|=` with keys would copy the whole set, file after file

    def update_paths(
        self,
        files: Iterable[tuple[str, MediaItem]],
        *,
        cells: Collection[tuple[str, str, str]] | None = None,
        exists: Callable[[str], bool] = os.path.lexists,
    ) -> PathChanges:
        """Let every file that was found have the rows of its content.

        A file without rows takes over those of one with the same content that is no longer there (it was renamed);
        where all others are still there, it gets copies. Rows of files that vanished stay.

        Args:
            files: (media_id, file) as found by the scan. Best all at once; one by one works too.
            cells: (question, model_id, settings_id) that may be copied; None copies all that the content has.
            exists: tells whether a file still lies at a place.
        """
        by_content: dict[str, dict[str, MediaItem]] = {}
        for media_id, item in files:
            by_content.setdefault(media_id, {})[location(item.root, item.rel)] = item
        n_renamed = n_copied = 0
        for media_id, present in by_content.items():
            known = self._known.groups(media_id)
            new = [place for place in present if place not in known]
            gone = [place for place in known if place not in present and not exists(place)] if known and new else []
            for old, place in zip(gone, new, strict=False):
                names = self._known.place(next(iter(known[old].values()))[0])
                self._do(Change("move", media_id, *names, None, present[place].root, present[place].rel))
                known[place] = known.pop(old)
                n_renamed += 1
            if len(known.keys() | present.keys()) > 1:
                for place, item in present.items():
                    n_copied += self._copy_missing(media_id, known, place, item, cells)
        return PathChanges(n_renamed, n_copied)

    def copy_rows(
        self, media_id: str, source: MediaItem, target: MediaItem, cells: Iterable[tuple[str, str, str]]
    ) -> list[Status]:
        """Give a file the answers of another one with the same content; what it has for these cells is replaced.

        Args:
            media_id: the content of both.
            source: the file that has rows.
            target: the file that gets copies.
            cells: (question, model_id, settings_id) that are copied.

        Returns:
            The statuses of the copies.
        """
        made: list[Status] = []
        for cell in cells:
            made += self._do(Change("copy", media_id, source.root, source.rel, Cell(*cell), target.root, target.rel))
        return made

    def prune(self, gone: Callable[[str], bool]) -> int:
        """Drop the rows of vanished files. Returns how many files that were.

        Args:
            gone: tells of a place whether no file lies there any more.
        """
        files = [file for file in self._known.files() if gone(location(*file[1:]))]
        for media_id, root, path in files:
            self._do(Change("drop", media_id, root, path))
        return len(files)

    def rows_for(self, media_id: str | None) -> list[AnswerRow]:
        """All rows of a content, in the order of the table; of None, those of all files that could not be read.

        Reads through the table's files: for single questions, not for every file of a run.
        """
        numbers = self._known.numbers(media_id)
        wanted = {self._known.stored(i) for i in numbers}
        values: dict[int, AnswerRow] = {}
        start = 0
        unsaved = rows_to_frame(step for step in self._steps if isinstance(step, AnswerRow))
        for frame in chain(self._shelf.stored(), [unsaved]) if wanted else ():
            here = sorted(i for i in wanted if start <= i < start + frame.height)
            values |= zip(here, frame_to_rows(frame[[i - start for i in here]]), strict=True)
            start += frame.height
            if len(values) == len(wanted):
                break
        named = ((values[self._known.stored(i)], *self._known.place(i)) for i in numbers)
        return [replace(row, root=root, path=path) for row, root, path in named]

    def counts(self) -> dict[str, int]:
        """Rows by status, the statuses that occur."""
        return self._known.counts()

    def checkpoint(self) -> bool:
        """Bring all changes to the disk, beside the table, which is not touched.

        Returns:
            True when there was anything to write.

        Raises:
            TableError: no room, or the folder cannot be written. What was not written is written by the next call.
        """
        if not self._steps:
            return False
        self._shelf.append(change_log.to_frame(self._steps))
        self._steps = []
        return True

    def commit(self) -> bool:
        """Merge all changes into the table, whole or not at all; without changes nothing is touched.

        Returns:
            True when a file was written.

        Raises:
            TableError: it cannot be written, or somebody else wrote it since `load`. The old one is untouched, and
                what was finished lies in parts beside it, for the next run to merge.
        """
        if self._loaded:
            self.checkpoint()
        written = self._shelf.merge(self._known, even_without_rows=True)
        if written:
            self._index = None
        return written

    @property
    def _known(self) -> Index:
        if self._index is None:
            self._index = self._shelf.read_index()
        return self._index

    def _do(self, step: Change) -> list[Status]:
        self._steps.append(step)
        return change_log.change(self._known, step)

    def _copy_missing(
        self,
        media_id: str,
        known: dict[str, dict[Cell, list[int]]],
        place: str,
        item: MediaItem,
        cells: Collection[tuple[str, str, str]] | None,
    ) -> bool:
        """Copy to `place` the answers that files with the same content have and it lacks. True when there were any."""
        mine = known.get(place, {})
        lacking: dict[Cell, int] = {}
        for there, groups in known.items():
            if there != place:
                found = {c: n[0] for c, n in groups.items() if c not in mine and (cells is None or c in cells)}
                lacking = found | lacking
        for cell, number in lacking.items():
            self._do(Change("copy", media_id, *self._known.place(number), cell, item.root, item.rel))
        return bool(lacking)


def new_table(rows: Iterable[AnswerRow], path: str | os.PathLike[str]) -> None:
    """Write rows as a table of their own, replacing what lies there.

    Raises:
        TableError: unknown suffix, or it cannot be written.
    """
    formats.write(rows_to_frame(rows), path)
