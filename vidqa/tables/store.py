"""The table of a run: which rows it has, which are new, and the file that holds them. Asks nobody anything.

A row is done when media_id, question text, model_id and settings_id are equal; the segmentation is part of settings_id.
All rows of one file for one question are added together, so that their presence means done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from vidqa.errors import TableError
from vidqa.records import AnswerRow, MediaItem, Status
from vidqa.tables import formats
from vidqa.tables.names import visible
from vidqa.tables.rows import Cell, Rows, location
from vidqa.tables.schema import rows_to_frame

# What counts for a file whose segments ended differently: the gravest.
_GRAVITY: dict[str, int] = {"ok": 0, "empty": 1, "truncated": 2, "skipped": 3, "failed": 4}


@dataclass(frozen=True)
class PathChanges:
    """What `Table.update_paths` did, in files."""

    n_renamed: int
    n_copied: int


class Table:
    """A table on disk and the changes that a run makes to it. Nothing is written before `commit`.

    Args:
        path: where it lies or will lie; the suffix picks Parquet, CSV, JSONL or Arrow. A symbolic link is followed.

    Raises:
        TableError: unknown suffix.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        formats.format_of(path)
        self.path = Path(os.path.realpath(path))
        self._rows = Rows()
        self._added: set[tuple[str | None, str, Cell]] = set()
        self._state: tuple[int, ...] | None = None
        self._changed = False

    def load(self) -> Table:
        """Read the table, if there is one. Changes that were not committed are forgotten.

        Raises:
            TableError: it is no vidqa table (it is left as it is), or its folder cannot take one.
        """
        self._rows, self._added, self._changed = Rows(), set(), False
        if self.path.is_dir():
            raise TableError(f"{visible(str(self.path))} is a folder", hint="name a file, as in captions.parquet")
        folder = self.path.parent
        if not folder.is_dir():
            raise TableError(
                f"the folder {visible(str(folder))} does not exist", hint=f"mkdir -p {visible(str(folder))}"
            )
        if not os.access(folder, os.W_OK):  # said now, and not after hours of work
            raise TableError(f"the folder {visible(str(folder))} cannot be written", hint="another --out")
        self._state = self._state_on_disk()
        if self._state is not None:
            self._rows = Rows(formats.read(self.path))
        return self

    def __len__(self) -> int:
        """Rows, those not yet committed included."""
        return len(self._rows)

    def done(self, media_id: str | None, question: str, model_id: str, settings_id: str) -> Status | None:
        """How a question about a content ended, or None when it was not yet asked.

        Where several rows answer it (segments, files with the same content), the gravest status counts: failed,
        skipped, truncated, empty, ok. A file that could not even be read (media_id None) is never done.
        """
        if media_id is None:
            return None
        found = self._rows.statuses(media_id, Cell(question, model_id, settings_id))
        return max(found, key=lambda s: _GRAVITY[s], default=None)

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
        for (media_id, place, cell), group in groups.items():
            self._rows.drop(None, place, cell)
            self._rows.drop(media_id, place, cell)
            self._rows.append(group)
        self._added |= groups.keys()
        self._changed |= bool(groups)

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
            known = self._rows.groups(media_id)
            new = [place for place in present if place not in known]
            gone = [place for place in known if place not in present and not exists(place)] if known and new else []
            for old, place in zip(gone, new, strict=False):
                self._rows.move(media_id, old, present[place])
                known[place] = known.pop(old)
                n_renamed += 1
            if len(known.keys() | present.keys()) > 1:
                n_copied += sum(self._copy_missing(known, place, item, cells) for place, item in present.items())
        self._changed |= bool(n_renamed or n_copied)
        return PathChanges(n_renamed, n_copied)

    def rows_for(self, media_id: str | None) -> list[AnswerRow]:
        """All rows of a content, in the order of the table."""
        return self._rows.of(media_id)

    def counts(self) -> dict[str, int]:
        """Rows by status, the statuses that occur."""
        return self._rows.counts()

    def commit(self) -> bool:
        """Write the table, whole or not at all; without changes nothing is touched.

        Returns:
            True when a file was written.

        Raises:
            TableError: it cannot be written, or somebody else wrote it since `load`. The old one is untouched.
        """
        if not self._changed and self._state is not None:
            return False
        if self._state_on_disk() != self._state:
            what = f"{visible(str(self.path))} was changed by somebody else during the run; it is left as it is"
            raise TableError(what, hint="run again: what is in the cache is not encoded anew")
        frame = self._rows.merged()
        formats.write(frame, self.path)
        self._rows, self._state, self._changed = Rows(frame), self._state_on_disk(), False
        return True

    def _copy_missing(
        self,
        known: dict[str, dict[Cell, list[int]]],
        place: str,
        item: MediaItem,
        cells: Collection[tuple[str, str, str]] | None,
    ) -> bool:
        """Copy to `place` the answers that files with the same content have and it lacks. True when there were any."""
        mine = known.get(place, {})
        lacking: dict[Cell, list[int]] = {}
        for there, groups in known.items():
            if there != place:
                lacking |= {
                    c: n for c, n in groups.items() if c not in mine | lacking and (cells is None or c in cells)
                }
        for numbers in lacking.values():
            self._rows.copy(numbers, item)
        return bool(lacking)

    def _state_on_disk(self) -> tuple[int, ...] | None:
        try:
            s = self.path.stat()
        except FileNotFoundError:
            return None
        return s.st_ino, s.st_size, s.st_mtime_ns


def new_table(rows: Iterable[AnswerRow], path: str | os.PathLike[str]) -> None:
    """Write rows as a table of their own, replacing what lies there.

    Raises:
        TableError: unknown suffix, or it cannot be written.
    """
    formats.write(rows_to_frame(rows), path)
