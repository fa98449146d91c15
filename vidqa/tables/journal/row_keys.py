"""What a written table has, by keys: which file has rows for what was asked, and how they ended.

Only the columns that say what a row is about are looked at, piece by piece, and they are kept as numbers: 13 bytes a
row, and for each file once its id, its place and 24 bytes more. So ten million rows are known without being loaded.
Knows no format.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, get_args

import numpy as np
import polars as pl

from vidqa.common.path_text import unescape_path
from vidqa.records import Status
from vidqa.tables.journal.interning import Numbering, Texts

STATUSES: tuple[Status, ...] = get_args(Status)
_FILE = ["media_id", "root", "path"]
_MASK = (1 << 64) - 1
_ID_BYTES = 32
# Odd numbers without pattern, so that every part of an id tells.
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)
_OTHER_SEED = 1 << 32


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
        seed = 0
        while not self._collect(frames(), seed):
            seed += 1

    def _collect(self, frames: Iterable[pl.DataFrame], seed: int) -> bool:
        """Read everything; False when the hashes of two files are equal."""
        self.cells: dict[Cell, int] = {}
        self._media_ids, self._paths, self._roots = Texts(), Texts(), Texts()
        self._without_id: dict[int, None] = {}  # files that could not be read, in order
        numbering, files, cells, statuses = Numbering(), [], [], []
        root_of, checks = [], np.empty(0, np.uint64)
        for frame in frames:
            file = pl.struct(_FILE)
            hashed = frame.select(file.hash(seed).alias("hash"), file.hash(seed + _OTHER_SEED).alias("check"))
            n_files = len(numbering)
            numbers, new = numbering.number(hashed["hash"].to_numpy())
            if len(numbering) > len(checks):
                checks = np.concatenate([checks, np.empty(len(numbering), np.uint64)])  # at least twice as many
            check = hashed["check"].to_numpy()
            checks[n_files : len(numbering)] = check[new]
            if (checks[numbers] != check).any():
                return False
            root_of.append(self._add_files(frame.select(_FILE)[new], n_files))
            files.append(numbers.astype(np.uint32))
            cells.append(self._cell_numbers(frame))
            statuses.append(frame["status"].cast(pl.Enum(STATUSES)).to_physical().to_numpy().astype(np.uint8))
        #: uint32, uint32, uint8 [rows]: file, question with model and settings, status.
        self.file_of = np.concatenate([*files, np.empty(0, np.uint32)])
        self.cell_of = np.concatenate([*cells, np.empty(0, np.uint32)])
        self.status_of = np.concatenate([*statuses, np.empty(0, np.uint8)])
        self._root_of = np.concatenate([*root_of, np.empty(0, np.uint32)])
        self._arrange()
        return True

    def _add_files(self, new: pl.DataFrame, number: int) -> np.ndarray:
        """Keep the names of files from `number` on. Returns where the root of each of them stands."""
        self._media_ids.extend(new["media_id"])
        self._paths.extend(new["path"])
        self._without_id |= dict.fromkeys((number + np.flatnonzero(new["media_id"].is_null().to_numpy())).tolist())
        # Mostly the root of the file before: kept once.
        last = self._roots[len(self._roots) - 1] if len(self._roots) else None
        other = (new["root"] != new["root"].shift(1, fill_value=last)).fill_null(True)
        n_before = len(self._roots)
        self._roots.extend(new["root"].filter(other))
        found: np.ndarray = (n_before - 1 + np.cumsum(other.to_numpy())).astype(np.uint32)
        return found

    def _cell_numbers(self, frame: pl.DataFrame) -> np.ndarray:
        kinds = frame.select(Cell._fields).unique(maintain_order=True)
        numbers = [self.cells.setdefault(Cell(*values), len(self.cells)) for values in kinds.iter_rows()]
        kinds = kinds.with_columns(pl.Series("number", numbers, dtype=pl.UInt32))
        joined = frame.select(Cell._fields).join(kinds, on=list(Cell._fields), how="left", maintain_order="left")
        return joined["number"].to_numpy().copy()  # a view would keep the frame

    def _arrange(self) -> None:
        """Rows by file, and files by content."""
        n = self.n_files
        small = np.uint32 if len(self) < 1 << 32 else np.uint64
        self._by_file = np.argsort(self.file_of, kind="stable").astype(small)
        self._start = np.zeros(n + 1, small)
        np.cumsum(np.bincount(self.file_of, minlength=n), out=self._start[1:])
        codes = np.concatenate([*map(_codes, self._media_ids.pieces()), np.empty(0, np.uint64)])
        with_id = np.delete(np.arange(n, dtype=np.uint32), list(self._without_id))
        order = np.argsort(codes[with_id], kind="stable")
        self._sorted_files, self._sorted_codes = with_id[order], codes[with_id][order]
        self._unread: dict[str, list[int]] = {}
        for file in self._without_id:
            self._unread.setdefault(location(*self.place(file)), []).append(file)

    def __len__(self) -> int:
        return len(self.file_of)

    @property
    def n_files(self) -> int:
        """Different files, by content and place."""
        return len(self._paths)

    def files(self, media_id: str | None, place: str) -> list[int]:
        """Numbers of the files with a content; of None, of those at `place` that could not be read."""
        if media_id is None:
            return self._unread.get(place, [])
        code = np.uint64(_code(media_id))
        a = int(np.searchsorted(self._sorted_codes, code))
        found = []
        while a < len(self._sorted_codes) and self._sorted_codes[a] == code:
            file = int(self._sorted_files[a])
            if self._media_ids[file] == media_id:
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
        # Only who could not be read has no name; a table made by hand may name a content by an empty text.
        return self._media_ids[file] or (None if file in self._without_id else "")

    def place(self, file: int) -> tuple[str, str]:
        """root and path of a file, as the system knows them."""
        return unescape_path(self._roots[int(self._root_of[file])]), unescape_path(self._paths[file])


def _code(media_id: str) -> int:
    """64 bits of a content's digest; who finds by them compares the whole."""
    data = media_id.encode("utf-8", "surrogatepass")[:_ID_BYTES].ljust(_ID_BYTES, b"\0")
    words = (int.from_bytes(data[a : a + 8], "little") for a in range(0, _ID_BYTES, 8))
    mixed = sum(word * factor for word, factor in zip(words, _MIX, strict=True)) & _MASK
    return mixed ^ (mixed >> 32)


def _codes(piece: tuple[bytes, np.ndarray]) -> np.ndarray:
    """uint64 [n]: `_code` of many."""
    data, ends = piece
    starts = np.concatenate([np.zeros(1, ends.dtype), ends[:-1]])
    if (ends - starts == _ID_BYTES).all():
        words = np.frombuffer(data, "<u8").reshape(len(ends), -1)
        mixed: np.ndarray = (words * np.array(_MIX, np.uint64)).sum(axis=1, dtype=np.uint64)
        return mixed ^ (mixed >> np.uint64(32))
    texts = (data[a:b].decode() for a, b in zip(starts.tolist(), ends.tolist(), strict=True))
    return np.array([_code(text) for text in texts], np.uint64)
