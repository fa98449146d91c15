"""The folder `TABLE.parts`: the journal of a run, and new files of the table that are about to be published.

    000001.parquet ...   parts of the change log, each written atomically and synced to disk
    new-NAME             a complete new file of the table
    ready.json           which new files replace which old ones, and which parts of the log they contain

Publishing is atomic: until `ready.json` exists nothing has changed, and once it exists the next run completes whatever
renames a crash interrupted. File names and numbers do not depend on a clock.
Scope: files and frames; change_log.py defines what an entry means.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import polars as pl

from vidqa.common import atomic_io
from vidqa.common.disk_space import os_errors
from vidqa.common.path_text import escape_surrogates
from vidqa.errors import TableError
from vidqa.tables import formats
from vidqa.tables.journal import change_log
from vidqa.tables.provenance import Provenance, read_provenance

FileState = tuple[int, int, int]  # inode, bytes, modification time in ns

_NAME = re.compile(r"\d{6,}\.parquet")
_NEW = "new-"
_READY = "ready.json"


@dataclass(frozen=True)
class Publication:
    """Content of `ready.json`.

    Attributes:
        replaces: name of each file of the table that is replaced or created, with the state of the old file or None.
        parts: names of the parts of the log that the new files contain.
    """

    replaces: dict[str, FileState | None]
    parts: tuple[str, ...]


class JournalFolder:
    """The journal of one table.

    Args:
        table: the table's file, or the folder of a dataset.
        folder: the folder that contains the files of the table; for a dataset, the dataset itself.
    """

    def __init__(self, table: Path, folder: Path) -> None:
        self.folder = table.with_name(table.name + ".parts")
        self._table_folder = folder

    def names(self) -> list[str]:
        """Return the names of the parts of the log that are not yet in the table, in order."""
        merged = set() if (publication := self.publication()) is None else set(publication.parts)
        return [name for name in self._part_names() if name not in merged]

    def append(self, log: pl.DataFrame, provenance: Provenance) -> str:
        """Write the next part of the log and sync it to disk. Returns its name.

        Args:
            log: the entries.
            provenance: of the rows among them.

        Raises:
            TableError: the disk is full, or the folder is not writable.
        """
        last = max((int(name.split(".")[0]) for name in self._part_names()), default=0)
        name = f"{last + 1:06d}.parquet"
        try:
            if not self.folder.is_dir():
                self.folder.mkdir()
                atomic_io.fsync_folder(self.folder.parent)
            with atomic_io.atomic_write(self.folder / name) as f, os_errors(f, pl.exceptions.PolarsError):
                log.write_parquet(f, compression="zstd", metadata=provenance.metadata())
        except (OSError, pl.exceptions.PolarsError) as error:
            raise formats.write_error(self.folder / name, error, "rows finished earlier are safe") from error
        return name

    def read(self, name: str) -> pl.DataFrame:
        """Read one part of the log.

        Raises:
            TableError: the file is damaged, or was not written by this version of vidqa.
        """
        path = self.folder / name
        source = escape_surrogates(str(path))
        try:
            frame = pl.read_parquet(path.read_bytes())
        except (OSError, pl.exceptions.PolarsError) as error:
            hint = "move this file away to continue without its rows; their questions are then asked again"
            raise TableError(f"{source}: damaged part file: {formats.first_line(error)}", hint=hint) from error
        return change_log.check(frame, source)

    def new_file(
        self, name: str, batches: Iterable[pl.DataFrame], provenance: Provenance, *, for_spreadsheets: bool = False
    ) -> None:
        """Write a new file of the table, for `publish`.

        Args:
            name: of the file.
            batches: its rows.
            provenance: of the table.
            for_spreadsheets: as for `formats.write_batches`.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        self.folder.mkdir(exist_ok=True)
        metadata, path = provenance.metadata(), self.folder / (_NEW + name)
        formats.write_batches(batches, path, for_spreadsheets=for_spreadsheets, metadata=metadata)

    def publish(self, names: Iterable[str], parts: Iterable[str]) -> None:
        """Replace files of the table by new ones and delete the parts that they contain.

        Args:
            names: files that `new_file` wrote.
            parts: names of the parts of the log that are in them.

        Raises:
            OSError: a file cannot be written, renamed or deleted. If `ready.json` exists, a later `finish` completes
                the publication.
        """
        replaces = {name: file_state(self._table_folder / name) for name in names}
        text = json.dumps({"replaces": replaces, "parts": list(parts)})
        with atomic_io.atomic_write(self.folder / _READY) as f:
            f.write(text.encode("utf-8", "surrogateescape"))
        self.finish()

    def finish(self) -> None:
        """Complete an interrupted publication and delete leftover files.

        Raises:
            OSError: a file cannot be renamed or deleted; nothing is lost.
        """
        if not self.folder.is_dir():
            return
        publication = self.publication()
        if publication is not None:
            for name in publication.replaces:
                if (self.folder / (_NEW + name)).exists():
                    atomic_io.replace_file(self.folder / (_NEW + name), self._table_folder / name)
            for part in publication.parts:
                (self.folder / part).unlink(missing_ok=True)
            atomic_io.fsync_folder(self.folder)  # the parts must be gone before the file that lists them as merged
        (self.folder / _READY).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name.startswith(_NEW) or (path.name.startswith(".") and path.name.endswith(".part")):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder still contains parts, or files that are not ours
            self.folder.rmdir()
            atomic_io.fsync_folder(self.folder.parent)

    def provenance(self, names: Iterable[str]) -> Provenance:
        """Return the provenance of the rows in some parts of the log."""
        return reduce(or_, (read_provenance(self.folder / name) for name in names), Provenance())

    def current(self, name: str) -> Path:
        """Return the path of a table file's current content, which may be in an unfinished publication."""
        new = self.folder / (_NEW + name)
        publication = self.publication()
        is_replaced = publication is not None and name in publication.replaces and new.exists()
        return new if is_replaced else self._table_folder / name

    def publication(self) -> Publication | None:
        """Return the publication that has started but is not yet complete, or None.

        Also None if an old file has changed since it started: then another process has written the table, and the parts
        still have to be merged.

        Raises:
            TableError: `ready.json` is damaged.
        """
        try:
            data = json.loads((self.folder / _READY).read_bytes().decode("utf-8", "surrogateescape"))
            old = {name: None if state is None else tuple(state) for name, state in data["replaces"].items()}
            publication = Publication(old, tuple(data["parts"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{escape_surrogates(str(self.folder / _READY))}: damaged: {error}"
            raise TableError(what, hint="move this file away; the journal next to it is then merged again") from error
        waiting = [name for name in old if (self.folder / (_NEW + name)).exists()]
        unchanged = all(file_state(self._table_folder / name) == old[name] for name in waiting)
        return publication if unchanged else None

    def _part_names(self) -> list[str]:
        try:
            return sorted((n for n in os.listdir(self.folder) if _NAME.fullmatch(n)), key=lambda n: (len(n), n))
        except (FileNotFoundError, NotADirectoryError):
            return []


def file_state(path: Path) -> FileState | None:
    """Return the state of a file, which differs once another process has replaced it; None if the file is missing."""
    try:
        s = path.stat()
    except FileNotFoundError:
        return None
    return s.st_ino, s.st_size, s.st_mtime_ns
