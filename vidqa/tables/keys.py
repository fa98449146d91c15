"""What a written table has, by keys: which file has rows for what was asked, and how they ended.

Only the columns that say what a row is about are looked at, piece by piece, and they are kept as numbers: about 15
bytes a row, and the place of each file once. So ten million rows are known without being loaded. Knows no format.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, cast, get_args

import numpy as np
import polars as pl

from vidqa.records import Status
from vidqa.tables.names import unescape

STATUSES: tuple[Status, ...] = get_args(Status)
_FILE = ["media_id", "root", "path"]
_MASK = (1 << 64) - 1
_MIX = 0x9E3779B97F4A7C15  # an odd number without pattern, so that both halves of an id tell


class Cell(NamedTuple):
    """What was asked of a file, by whom, and how."""

    question: str  # the text: another id for the same words is the same question
    model_id: str
    settings_id: str


#: The columns that `Keys` needs.
KEY_COLUMNS = (*_FILE, *Cell._fields, "status")


def location(root: str, path: str) -> str:
    """Where a row's file lies. `root` is the folder that was scanned, or the one of a file that was named."""
    return os.path.join(root, path)


class Keys:
    """The keys of a table's rows; rows and files are numbered in the order of the table.

    Args:
        frames: gives the table's batches with `KEY_COLUMNS`; called again only if two files had the same 64-bit hash.
    """

    def __init__(self, frames: Callable[[], Iterable[pl.DataFrame]]) -> None:
        self.cells: dict[Cell, int] = {}
        seed = 0
        while not self._collect(frames(), seed):
            self.cells, seed = {}, seed + 1

    def _collect(self, frames: Iterable[pl.DataFrame], seed: int) -> bool:
        """Read everything; False when the hashes of two files are equal."""
        hashes, files, cells, statuses = [], [], [], []
        for frame in frames:
            keyed = frame.with_columns(pl.struct(_FILE).hash(seed).alias("hash"))
            hashes.append(keyed["hash"].to_numpy())
            files.append(keyed.select("hash", *_FILE).unique(maintain_order=True))
            cells.append(self._cell_numbers(frame))
            statuses.append(frame["status"].cast(pl.Enum(STATUSES)).to_physical().to_numpy().astype(np.uint8))
        schema = {"hash": pl.UInt64, **dict.fromkeys(_FILE, pl.String)}
        self._files = pl.concat(files).unique(maintain_order=True) if files else pl.DataFrame(schema=schema)
        names = self._files["hash"].to_numpy()
        if len(np.unique(names)) < len(names):
            return False
        order = np.argsort(names)
        row_hashes = np.concatenate([*hashes, np.empty(0, np.uint64)])
        #: uint32 [rows]: file, question with model and settings, status.
        self.file_of = order[np.searchsorted(names, row_hashes, sorter=order)].astype(np.uint32)
        self.cell_of = np.concatenate([*cells, np.empty(0, np.uint32)])
        self.status_of = np.concatenate([*statuses, np.empty(0, np.uint8)])
        self._files = self._files.drop("hash")
        self._arrange()
        return True

    def _cell_numbers(self, frame: pl.DataFrame) -> np.ndarray:
        kinds = frame.select(Cell._fields).unique(maintain_order=True)
        numbers = [self.cells.setdefault(Cell(*values), len(self.cells)) for values in kinds.iter_rows()]
        kinds = kinds.with_columns(pl.Series("number", numbers, dtype=pl.UInt32))
        joined = frame.select(Cell._fields).join(kinds, on=list(Cell._fields), how="left", maintain_order="left")
        return cast(np.ndarray, joined["number"].to_numpy())

    def _arrange(self) -> None:
        """Rows by file, and files by content."""
        n = self.n_files
        small = np.uint32 if len(self) < 1 << 32 else np.uint64
        self._by_file = np.argsort(self.file_of, kind="stable").astype(small)
        self._start = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(self.file_of, minlength=n), out=self._start[1:])
        known = self._files["media_id"].is_not_null().to_numpy()
        codes = np.zeros(n, np.uint64)
        for a in range(0, n, 100_000):  # in pieces: Python's texts are large
            codes[a : a + 100_000] = [_code(m) if m else 0 for m in self._files["media_id"][a : a + 100_000]]
        known_files = np.flatnonzero(known)
        order = np.argsort(codes[known_files], kind="stable")
        self._sorted_files, self._sorted_codes = known_files[order].astype(np.uint32), codes[known_files][order]
        self._unread: dict[str, list[int]] = {}
        for file in np.flatnonzero(~known).tolist():
            self._unread.setdefault(location(*self.place(file)), []).append(file)

    def __len__(self) -> int:
        return len(self.file_of)

    @property
    def n_files(self) -> int:
        """Different files, by content and place."""
        return self._files.height

    def files(self, media_id: str | None, place: str) -> list[int]:
        """Numbers of the files with a content; of None, of those at `place` that could not be read."""
        if media_id is None:
            return self._unread.get(place, [])
        code, ids = np.uint64(_code(media_id)), self._files["media_id"]
        a = int(np.searchsorted(self._sorted_codes, code))
        found = []
        while a < len(self._sorted_codes) and self._sorted_codes[a] == code:
            file = int(self._sorted_files[a])
            if ids[file] == media_id:
                found.append(file)
            a += 1
        return sorted(found)

    def unread(self) -> Iterator[int]:
        """Numbers of all files that could not be read."""
        for files in self._unread.values():
            yield from files

    def rows(self, file: int) -> list[int]:
        """Numbers of a file's rows."""
        found: list[int] = self._by_file[self._start[file] : self._start[file + 1]].tolist()
        return found

    def media_id(self, file: int) -> str | None:
        """Content of a file."""
        found: str | None = self._files["media_id"][file]
        return found

    def place(self, file: int) -> tuple[str, str]:
        """root and path of a file, as the system knows them."""
        return unescape(self._files["root"][file]), unescape(self._files["path"][file])


def _code(media_id: str) -> int:
    """64 bits of a content's digest; who finds by them compares the whole."""
    data = media_id.encode("utf-8", "surrogatepass")[:32].ljust(16, b"\0")
    halves = int.from_bytes(data[:8], "little") * _MIX + int.from_bytes(data[8:16], "little")
    return (halves ^ (halves >> 64)) & _MASK
