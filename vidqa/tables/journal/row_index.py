"""All rows of a run's table by their keys: those of the written table, and what the run changes. Knows no file.

Rows have numbers: first those of the written table, then the new ones. Nothing is moved about while a run is at work:
dropping, renaming and copying are noted, and `merge` makes the rows that are written. A new row is `stored` (its values
lie in a part) or a copy of an earlier one.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from vidqa.records import Status
from vidqa.tables.journal.row_keys import STATUSES, Cell, Keys, location


class Index:
    """Rows that can be looked up by content.

    Args:
        base: the keys of the written table.
    """

    def __init__(self, base: Keys) -> None:
        self._base = base
        self._cells = dict(base.cells)
        self._names = list(self._cells)
        self._added: list[tuple[str | None, str, str]] = []  # new files: media_id, root, path
        self._added_at: dict[str, list[int]] = {}
        self._rows_of: dict[int, list[int]] = {}  # file -> new rows
        self._file, self._cell, self._status = array("Q"), array("L"), array("B")  # of new rows
        self._stored = array("Q")  # number among the stored rows; for a copy that of its original
        self._is_copy = bytearray()
        self._gone: set[int] = set()
        self._moved: dict[int, tuple[str, str]] = {}  # file -> root, path
        self.n_stored = len(base)

    def __len__(self) -> int:
        return len(self._base) + len(self._file) - len(self._gone)

    def statuses(self, media_id: str, cell: Cell) -> list[Status]:
        """Statuses of all rows that answer `cell` for a content."""
        number = self._cells.get(cell)
        if number is None:
            return []
        return [self._status_of(i) for i in self._numbers(media_id) if self._cell_of(i) == number]

    def has_failed(self, media_id: str | None, place: str, cell: Cell) -> bool:
        """Whether any row of a file that answers `cell` is a failed one."""
        return any(self._status_of(i) == "failed" for i in self.numbers(media_id, place, cell))

    def groups(self, media_id: str) -> dict[str, dict[Cell, list[int]]]:
        """Place of a file -> what was asked of it -> numbers of the rows; of all files with one content."""
        found: dict[str, dict[Cell, list[int]]] = {}
        for file in self._files(media_id):
            if rows := list(self._rows(file)):
                cells = found.setdefault(location(*self._place(file)), {})
                for i in rows:
                    cells.setdefault(self._names[self._cell_of(i)], []).append(i)
        return found

    def files(self) -> Iterator[tuple[str | None, str, str]]:
        """media_id, root and path of every file that has rows."""
        for file in range(self._base.n_files + len(self._added)):
            if next(self._rows(file), None) is not None:
                yield (self._media_id(file), *self._place(file))

    def counts(self) -> dict[str, int]:
        """Rows by status."""
        n = len(STATUSES)
        found = Counter(dict(zip(STATUSES, np.bincount(self._base.status_of, minlength=n).tolist(), strict=True)))
        found.update(STATUSES[s] for s in self._status)
        found.subtract(self._status_of(i) for i in self._gone)
        return {status: number for status, number in found.items() if number}

    def numbers(self, media_id: str | None, place: str = "", cell: Cell | None = None) -> list[int]:
        """Numbers of rows of a content (of None: of unread files), at one place and of one cell if these are given."""
        number = None if cell is None else self._cells.get(cell, -1)
        files = [f for f in self._files(media_id, place) if not place or location(*self._place(f)) == place]
        return [i for f in files for i in self._rows(f) if number is None or self._cell_of(i) == number]

    def drop(self, media_id: str | None, place: str, cell: Cell | None = None) -> int:
        """Forget the rows of a file, or only those that answer `cell`. Returns how many."""
        numbers = self.numbers(media_id, place, cell)
        self._gone.update(numbers)
        return len(numbers)

    def append(self, media_id: str | None, root: str, path: str, cells: Iterable[tuple[Cell, Status]]) -> None:
        """Add stored rows of one file behind the others."""
        file = self._file_at(media_id, root, path)
        for cell, status in cells:
            self._add(file, self._number(cell), STATUSES.index(status), self.n_stored, False)
            self.n_stored += 1

    def move(self, media_id: str, place: str, root: str, path: str) -> None:
        """Give the rows of the file at `place` to another name."""
        for file in self._files(media_id):
            if location(*self._place(file)) == place:
                self._moved[file] = (root, path)

    def copy(self, numbers: Iterable[int], root: str, path: str) -> list[Status]:
        """Add copies of rows for another file with the same content. Returns their statuses."""
        made: list[Status] = []
        for i in numbers:
            file = self._file_at(self._media_id(self._file_of(i)), root, path)
            made.append(self._status_of(i))
            self._add(file, self._cell_of(i), STATUSES.index(made[-1]), self.stored(i), True)
        return made

    def stored(self, i: int) -> int:
        """Where the values of row `i` lie: its number among the stored rows."""
        n = len(self._base)
        return i if i < n else self._stored[i - n]

    def place(self, i: int) -> tuple[str, str]:
        """root and path of row `i`, as they are now."""
        return self._place(self._file_of(i))

    # What merging asks: arrays over all stored rows.

    def dropped(self) -> np.ndarray:
        """bool [stored rows]: which are not written."""
        gone = np.zeros(self.n_stored, bool)
        n = len(self._base)
        for i in self._gone:
            if i < n or not self._is_copy[i - n]:
                gone[self.stored(i)] = True
        return gone

    def renamed(self) -> dict[int, tuple[str, str]]:
        """Number of a stored row -> its new root and path, for rows whose file was renamed."""
        rows = ((i, names) for file, names in self._moved.items() for i in self._rows(file))
        return {self.stored(i): names for i, names in rows if not self._copied(i)}

    def copies(self) -> list[tuple[int, str, str]]:
        """(number of the original among the stored rows, root, path) of every copy, by number."""
        n = len(self._base)
        numbers = (n + k for k, is_copy in enumerate(self._is_copy) if is_copy and n + k not in self._gone)
        return sorted(((self.stored(i), *self.place(i)) for i in numbers), key=lambda made: made[0])

    def _copied(self, i: int) -> bool:
        return i >= len(self._base) and bool(self._is_copy[i - len(self._base)])

    def _files(self, media_id: str | None, place: str = "") -> list[int]:
        if media_id is None and not place:
            added = [f for key, files in self._added_at.items() if key.startswith("\0") for f in files]
            return sorted({*self._base.unread(), *added})
        return self._base.files(media_id, place) + self._added_at.get(_key(media_id, place), [])

    def _rows(self, file: int) -> Iterator[int]:
        old = self._base.rows(file) if file < self._base.n_files else []
        return (i for i in (*old, *self._rows_of.get(file, ())) if i not in self._gone)

    def _numbers(self, media_id: str) -> Iterator[int]:
        return (i for file in self._files(media_id) for i in self._rows(file))

    def _file_at(self, media_id: str | None, root: str, path: str) -> int:
        """Number of a file; it gets one if it has none."""
        place = location(root, path)
        for file in self._files(media_id, place):
            if location(*self._place(file)) == place:
                return file
        self._added.append((media_id, root, path))
        file = self._base.n_files + len(self._added) - 1
        self._added_at.setdefault(_key(media_id, place), []).append(file)
        return file

    def _number(self, cell: Cell) -> int:
        if cell not in self._cells:
            self._cells[cell] = len(self._names)
            self._names.append(cell)
        return self._cells[cell]

    def _add(self, file: int, cell: int, status: int, stored: int, is_copy: bool) -> None:
        self._rows_of.setdefault(file, []).append(len(self._base) + len(self._file))
        self._file.append(file)
        self._cell.append(cell)
        self._status.append(status)
        self._stored.append(stored)
        self._is_copy.append(is_copy)

    def _file_of(self, i: int) -> int:
        n = len(self._base)
        return int(self._base.file_of[i]) if i < n else self._file[i - n]

    def _cell_of(self, i: int) -> int:
        n = len(self._base)
        return int(self._base.cell_of[i]) if i < n else self._cell[i - n]

    def _status_of(self, i: int) -> Status:
        n = len(self._base)
        return STATUSES[self._base.status_of[i] if i < n else self._status[i - n]]

    def _media_id(self, file: int) -> str | None:
        n = self._base.n_files
        return self._base.media_id(file) if file < n else self._added[file - n][0]

    def _place(self, file: int) -> tuple[str, str]:
        if file in self._moved:
            return self._moved[file]
        n = self._base.n_files
        return self._base.place(file) if file < n else self._added[file - n][1:]


def _key(media_id: str | None, place: str) -> str:
    """What files are found by: the content, or the place of one that could not be read."""
    return media_id if media_id is not None else "\0" + place
