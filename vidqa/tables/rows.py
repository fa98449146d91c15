"""The rows of a table in memory: those of the file as a data frame, those of the run as values. Knows no file.

Rows have numbers: first those of the frame, then the new ones. Nothing is moved about while a run is at work; dropping
and renaming are noted, and `merged` makes the frame that is written.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, cast, get_args

import numpy as np
import polars as pl

from vidqa.records import AnswerRow, MediaItem, Status
from vidqa.tables.names import escape, unescape
from vidqa.tables.schema import SCHEMA, frame_to_rows, rows_to_frame

_STATUSES: tuple[Status, ...] = get_args(Status)


class Cell(NamedTuple):
    """What was asked of a file, by whom, and how."""

    question: str  # the text: another id for the same words is the same question
    model_id: str
    settings_id: str


def location(root: str, path: str) -> str:
    """Where a row's file lies. `root` is the folder that was scanned, or the file itself when that was named."""
    return root if os.path.basename(root) == path else os.path.join(root, path)


class Rows:
    """Rows that can be looked up by content.

    Args:
        frame: as `schema.align` gives it; None for none.
    """

    def __init__(self, frame: pl.DataFrame | None = None) -> None:
        self._frame = pl.DataFrame(schema=SCHEMA) if frame is None else frame
        self._new: list[AnswerRow] = []
        self._gone: set[int] = set()
        self._moved: dict[int, tuple[str, str]] = {}  # row -> root, path
        self._status = self._frame["status"].cast(pl.Enum(_STATUSES)).to_physical().to_numpy()
        self._root, self._path = self._frame["root"], self._frame["path"]
        self._cells, self._cell_of = _number_cells(self._frame)
        self._names = list(self._cells)
        self._at: dict[str, list[int]] = self._by_content()

    def __len__(self) -> int:
        return self._frame.height + len(self._new) - len(self._gone)

    def statuses(self, media_id: str, cell: Cell) -> list[Status]:
        """Statuses of all rows that answer `cell` for a content."""
        number = self._cells.get(cell)
        return [self._status_of(i) for i in self._numbers(media_id) if self._cell(i) == number]

    def groups(self, media_id: str) -> dict[str, dict[Cell, list[int]]]:
        """Place of a file -> what was asked of it -> numbers of the rows; of all files with one content."""
        found: dict[str, dict[Cell, list[int]]] = {}
        for i in self._numbers(media_id):
            found.setdefault(self._place(i), {}).setdefault(self._names[self._cell(i)], []).append(i)
        return found

    def copy(self, numbers: Iterable[int], item: MediaItem) -> None:
        """Add copies of rows for another file with the same content."""
        self.append([replace(self._row(i), root=item.root, path=item.rel) for i in numbers])

    def of(self, media_id: str | None) -> list[AnswerRow]:
        """Rows of a content; of None, those of all files that could not be read."""
        if media_id is not None:
            return [self._row(i) for i in self._numbers(media_id)]
        unread = sorted(i for key, at in self._at.items() if key.startswith("\0") for i in at)
        return [self._row(i) for i in unread if i not in self._gone]

    def counts(self) -> dict[str, int]:
        """Rows by status."""
        found = Counter(dict(zip(_STATUSES, np.bincount(self._status, minlength=len(_STATUSES)).tolist(), strict=True)))
        found.update(row.status for row in self._new)
        found.subtract(self._status_of(i) for i in self._gone)
        return {status: n for status, n in found.items() if n}

    def drop(self, media_id: str | None, place: str, cell: Cell) -> None:
        """Forget the rows that answer `cell` for one file."""
        number = self._cells.get(cell)
        for i in list(self._numbers(media_id, place)):
            if self._cell(i) == number and self._place(i) == place:
                self._gone.add(i)

    def append(self, rows: Iterable[AnswerRow]) -> None:
        """Add rows behind the others."""
        for row in rows:
            cell = Cell(row.question, row.model_id, row.settings_id)
            if cell not in self._cells:
                self._cells[cell] = len(self._names)
                self._names.append(cell)
            number = self._frame.height + len(self._new)
            self._at.setdefault(_key(row.media_id, location(row.root, row.path)), []).append(number)
            self._new.append(row)

    def move(self, media_id: str, place: str, item: MediaItem) -> None:
        """Give the rows of the file at `place` to `item`."""
        for i in list(self._numbers(media_id)):
            if self._place(i) == place:
                self._moved[i] = (item.root, item.rel)

    def merged(self) -> pl.DataFrame:
        """All rows, as they are to be written: the old ones in their order, then the new ones."""
        n, frame = self._frame.height, self._frame
        moved = {i: names for i, names in self._moved.items() if i < n}
        if moved:
            roots, paths = ([escape(names[k]) for names in moved.values()] for k in (0, 1))
            numbers = list(moved)
            frame = frame.with_columns(
                frame["root"].clone().scatter(numbers, roots), frame["path"].clone().scatter(numbers, paths)
            )
        gone = [i for i in self._gone if i < n]
        if gone:
            keep = np.ones(n, dtype=bool)
            keep[gone] = False
            frame = frame.filter(pl.Series(keep))
        new = [self._row(n + k) for k in range(len(self._new)) if n + k not in self._gone]
        return pl.concat([frame, rows_to_frame(new)]) if new else frame

    def _by_content(self) -> dict[str, list[int]]:
        known = self._frame.select("media_id").with_row_index("number").filter(pl.col("media_id").is_not_null())
        groups = known.group_by("media_id").agg("number")
        at: dict[str, list[int]] = dict(zip(groups["media_id"].to_list(), groups["number"].to_list(), strict=True))
        for i in self._frame["media_id"].is_null().arg_true().to_list():
            at.setdefault(_key(None, self._place(i)), []).append(i)
        return at

    def _numbers(self, media_id: str | None, place: str = "") -> Iterator[int]:
        return (i for i in self._at.get(_key(media_id, place), ()) if i not in self._gone)

    def _cell(self, i: int) -> int:
        if i < self._frame.height:
            return int(self._cell_of[i])
        row = self._new[i - self._frame.height]
        return self._cells[Cell(row.question, row.model_id, row.settings_id)]

    def _status_of(self, i: int) -> Status:
        n = self._frame.height
        return _STATUSES[self._status[i]] if i < n else self._new[i - n].status

    def _place(self, i: int) -> str:
        if i in self._moved:
            return location(*self._moved[i])
        n = self._frame.height
        if i < n:
            return location(unescape(self._root[i]), unescape(self._path[i]))
        return location(self._new[i - n].root, self._new[i - n].path)

    def _row(self, i: int) -> AnswerRow:
        n = self._frame.height
        row = frame_to_rows(self._frame[i])[0] if i < n else self._new[i - n]
        return replace(row, root=self._moved[i][0], path=self._moved[i][1]) if i in self._moved else row


def _key(media_id: str | None, place: str) -> str:
    """What rows are found by: the content, or the place of a file that could not be read."""
    return media_id if media_id is not None else "\0" + place


def _number_cells(frame: pl.DataFrame) -> tuple[dict[Cell, int], np.ndarray]:
    """Cell -> number, and int [rows] the number of each row's cell: there are few of them, however many rows."""
    columns = list(Cell._fields)
    kinds = frame.select(columns).unique(maintain_order=True).with_row_index("number")
    numbers = frame.select(columns).join(kinds, on=columns, how="left", maintain_order="left")["number"].to_numpy()
    cells = {Cell(*values): i for i, values in enumerate(kinds.select(columns).iter_rows())}
    return cells, cast(np.ndarray, numbers)
