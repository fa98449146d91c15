"""`--out` -> the files of a table: one file whose suffix picks the format, or a folder of Parquet files (a data set).

A data set is for tables too large to write anew: a run adds a file, and writes anew only those in which rows are
renamed or replaced. Knows names and folders; opens no table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from vidqa.common.path_text import escape_surrogates
from vidqa.errors import TableError
from vidqa.tables import formats

_PART = re.compile(r"part-(\d{6,})\.parquet")
#: Rows of one file of a data set.
FILE_ROWS = 1_000_000


@dataclass(frozen=True)
class Destination:
    """Where a table lies or will lie. Symbolic links are followed."""

    path: Path
    is_dataset: bool

    @classmethod
    def of(cls, out: str | os.PathLike[str]) -> Destination:
        """The target that a name asks for: a data set by a trailing slash, or by being a folder already.

        Raises:
            TableError: unknown suffix.
        """
        name = os.fspath(out)
        is_dataset = os.path.isdir(name) or name.endswith(("/", os.sep))
        if not is_dataset:
            formats.format_of(name)
        return cls(Path(os.path.realpath(name)), is_dataset)

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.path if self.is_dataset else self.path.parent

    def names(self) -> list[str]:
        """Its files, in the order of their rows."""
        if not self.is_dataset:
            return [self.path.name] if self.path.exists() else []
        try:
            return sorted(filter(_PART.fullmatch, os.listdir(self.path)), key=_number)
        except FileNotFoundError:
            return []

    def new_names(self) -> Iterator[str]:
        """Names for further files of a data set, without end."""
        last = max(map(_number, self.names()), default=0)
        return (f"part-{number:06d}.parquet" for number in count(last + 1))

    def check(self) -> None:
        """Say at once, and not after hours of work, that no table can be written here.

        Raises:
            TableError: the folder does not exist, cannot be written, or holds files of somebody else.
        """
        parent = self.path.parent
        if not parent.is_dir():
            there = escape_surrogates(str(parent))
            raise TableError(f"the folder {there} does not exist", hint=f"mkdir -p {there}")
        if self.path.is_dir() and not self.is_dataset:
            raise TableError(
                f"{escape_surrogates(str(self.path))} is a folder", hint="name a file, as in captions.parquet"
            )
        if self.is_dataset and self.path.exists():
            self._check_dataset()
        for folder in {parent, self.folder}:
            if folder.exists() and not os.access(folder, os.W_OK):
                raise TableError(f"the folder {escape_surrogates(str(folder))} cannot be written", hint="another --out")

    def _check_dataset(self) -> None:
        if not self.path.is_dir():
            what = f"{escape_surrogates(str(self.path))} is a file, and no folder for a data set"
            raise TableError(what, hint="leave the slash at its end away, or name another --out")
        strange = [n for n in os.listdir(self.path) if not n.startswith((".", "_")) and not _PART.fullmatch(n)]
        if strange:
            what = f"{escape_surrogates(str(self.path))} holds {escape_surrogates(min(strange))}: a data set needs a folder of its own"
            raise TableError(what, hint="name a new folder with --out DIR/, or a file, as in captions.parquet")


def _number(name: str) -> int:
    match = _PART.fullmatch(name)
    return int(match[1]) if match else 0
