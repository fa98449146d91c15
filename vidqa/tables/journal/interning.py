"""Many texts, and numbers for many hashes, in little memory: arrays and bytes instead of objects. Knows no table."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import polars as pl


class Texts:
    """Texts by number, in the order in which they came: their bytes and 4 more each."""

    def __init__(self) -> None:
        self._pieces: list[tuple[bytes, np.ndarray]] = []  # UTF-8, and where each text ends: uint32 [n]
        self._starts: list[int] = []
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def extend(self, texts: pl.Series) -> None:
        """Add texts, less than 4 GB of them at a time. A null becomes an empty one."""
        if not len(texts):
            return
        texts = texts.fill_null("")
        ends = np.cumsum(texts.str.len_bytes().to_numpy(), dtype=np.uint32)
        self._pieces.append((str(texts.str.join("")[0]).encode(), ends))
        self._starts.append(self._n)
        self._n += len(texts)

    def __getitem__(self, number: int) -> str:
        k = bisect_right(self._starts, number) - 1
        data, ends = self._pieces[k]
        i = number - self._starts[k]
        return data[int(ends[i - 1]) if i else 0 : int(ends[i])].decode()

    def pieces(self) -> list[tuple[bytes, np.ndarray]]:
        """The bytes of all texts, in pieces, and where in its piece each of them ends."""
        return self._pieces


class Numbering:
    """Hashes -> numbers 0, 1, 2, ... in the order in which they came.

    A few sorted arrays, each longer than all that came after it: finding costs a search in each, adding little more.
    """

    def __init__(self) -> None:
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def number(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give numbers.

        Args:
            hashes: uint64 [n], any of them as often as they like.

        Returns:
            int64 [n]: their numbers; int64 [m]: where among them the new ones stand, by number.
        """
        each, at, back = np.unique(hashes, return_index=True, return_inverse=True)
        numbers = self._find(each)
        unknown = np.flatnonzero(numbers < 0)
        by_coming = unknown[np.argsort(at[unknown])]
        numbers[by_coming] = np.arange(self._n, self._n + len(unknown))
        self._add(each[unknown], numbers[unknown])
        return numbers[back], at[by_coming]

    def _find(self, hashes: np.ndarray) -> np.ndarray:
        found = np.full(len(hashes), -1, np.int64)
        for level, numbers in self._levels:
            at = np.searchsorted(level, hashes)
            at[at == len(level)] = 0
            hit = level[at] == hashes
            found[hit] = numbers[at[hit]]
        return found

    def _add(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        if not len(hashes):
            return
        self._n += len(hashes)
        numbers = numbers.astype(np.uint32)
        while self._levels and len(self._levels[-1][0]) < 2 * len(hashes):
            level, older = self._levels.pop()
            hashes, numbers = np.concatenate([level, hashes]), np.concatenate([older, numbers])
            order = np.argsort(hashes)
            hashes, numbers = hashes[order], numbers[order]
        self._levels.append((hashes, numbers))
