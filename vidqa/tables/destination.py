"""The files that `--out` refers to: one file whose suffix selects the format, or a folder of Parquet files (a dataset).

A dataset suits tables that are too large to be rewritten by every run: a run adds a file, and rewrites only the files
in which rows are renamed or replaced.
Scope: names and folders; table files are not opened here.
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
#: Maximum number of rows in a file of a dataset.
FILE_ROWS = 1_000_000


@dataclass(frozen=True)
class Destination:
    """Location of a table, which need not exist yet. Symbolic links are followed."""

    path: Path
    is_dataset: bool

    @classmethod
    def of(cls, out: str | os.PathLike[str]) -> Destination:
        """Return the destination for a name: a dataset if it has a trailing slash or is an existing folder.

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
        """Folder that contains its files."""
        return self.path if self.is_dataset else self.path.parent

    def names(self) -> list[str]:
        """Return the names of its files, in the order of their rows."""
        if not self.is_dataset:
            return [self.path.name] if self.path.exists() else []
        try:
            return sorted(filter(_PART.fullmatch, os.listdir(self.path)), key=_number)
        except FileNotFoundError:
            return []

    def new_names(self) -> Iterator[str]:
        """Return an infinite sequence of names for new files of a dataset."""
        last = max(map(_number, self.names()), default=0)
        return (f"part-{number:06d}.parquet" for number in count(last + 1))

    def check(self) -> None:
        """Check, before the run starts, that a table can be written here.

        Raises:
            TableError: the folder does not exist, is not writable, or contains other files.
        """
        path, parent = escape_surrogates(str(self.path)), self.path.parent
        if not parent.is_dir():
            folder = escape_surrogates(str(parent))
            raise TableError(f"the folder {folder} does not exist", hint=f"mkdir -p {folder}")
        if self.path.is_dir() and not self.is_dataset:
            raise TableError(f"{path} is a folder", hint="name a file, such as captions.parquet")
        if self.is_dataset and self.path.exists():
            self._check_dataset()
        for folder_path in {parent, self.folder}:
            if folder_path.exists() and not os.access(folder_path, os.W_OK):
                what = f"the folder {escape_surrogates(str(folder_path))} is not writable"
                raise TableError(what, hint="fix its permissions, or use another --out")

    def _check_dataset(self) -> None:
        path = escape_surrogates(str(self.path))
        if not self.path.is_dir():
            what = f"{path} is a file, not the folder of a dataset"
            raise TableError(what, hint="remove the slash at the end, or use another --out")
        others = [n for n in os.listdir(self.path) if not n.startswith((".", "_")) and not _PART.fullmatch(n)]
        if others:
            what = f"{path} contains {escape_surrogates(min(others))}: a dataset needs a folder of its own"
            raise TableError(what, hint="use a new folder, --out DIR/, or a file, such as captions.parquet")


def _number(name: str) -> int:
    match = _PART.fullmatch(name)
    return int(match[1]) if match else 0
