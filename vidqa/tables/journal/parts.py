"""The folder `TABLE.parts` of a run at work: its log, part by part, and new files of the table on their way to it.

    000001.parquet ...   parts of the log, each whole or absent and on the disk
    new-NAME             a new file of the table, whole
    ready.json           which new files replace which old ones, and which parts are then in the table

Publishing is one step for whoever looks after a crash: before `ready.json` is there nothing has happened, from then on
everything has, for the next run goes on with the renames where they stopped. Numbers and names come from no clock.
Knows frames and files; does not know what a step means.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vidqa.common import atomic_io
from vidqa.common.path_text import escape_surrogates
from vidqa.errors import TableError
from vidqa.tables import formats
from vidqa.tables.journal import change_log

State = tuple[int, int, int]  # inode, bytes, modification time in ns

_NAME = re.compile(r"\d{6,}\.parquet")
_NEW = "new-"
_READY = "ready.json"


@dataclass(frozen=True)
class Ready:
    """A publication that was decided."""

    replaces: dict[str, State | None]  # name of a file of the table -> state of the old one
    parts: tuple[str, ...]  # what of the log is in the new files


class RowParts:
    """The parts of one table.

    Args:
        table: a file, or the folder of a data set.
        folder: where the files of the table lie: the table's own folder, or the data set itself.
    """

    def __init__(self, table: Path, folder: Path) -> None:
        self.folder = table.with_name(table.name + ".parts")
        self._table, self._target = table, folder

    def names(self) -> list[str]:
        """The parts of the log that are not yet in the table, in order."""
        done = set() if (ready := self.ready()) is None else set(ready.parts)
        return [name for name in self._numbered() if name not in done]

    def append(self, frame: pl.DataFrame) -> str:
        """Write the next part of the log; it has reached the disk when this returns its name.

        Raises:
            TableError: no room, or the folder cannot be written.
        """
        last = max((int(name.split(".")[0]) for name in self._numbered()), default=0)
        name = f"{last + 1:06d}.parquet"
        try:
            if not self.folder.is_dir():
                self.folder.mkdir()
                atomic_io.fsync_folder(self.folder.parent)
            with atomic_io.atomic_write(self.folder / name) as f:
                frame.write_parquet(f, compression="zstd")
        except (OSError, pl.exceptions.PolarsError) as error:
            refusal = error if isinstance(error, OSError) else OSError(str(error))
            kept = "what was finished before is safe"
            raise formats.write_error(str(self.folder / name), refusal, kept) from error
        return name

    def read(self, name: str) -> pl.DataFrame:
        """One part of the log.

        Raises:
            TableError: it is damaged, or none of ours.
        """
        path = self.folder / name
        source = escape_surrogates(str(path))
        try:
            frame = pl.read_parquet(path.read_bytes())
        except (OSError, pl.exceptions.PolarsError) as error:
            hint = "move this file away to go on without its rows; they are then asked again"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TableError(f"{source}: a part of the table is damaged: {reason}", hint=hint) from error
        return change_log.check(frame, source)

    def new_file(self, name: str, frames: Iterable[pl.DataFrame]) -> None:
        """Write a new file of the table, for `publish`.

        Raises:
            OSError: no room, or the folder cannot be written.
        """
        self.folder.mkdir(exist_ok=True)
        formats.write_batches(frames, self.folder / (_NEW + name))

    def publish(self, names: Iterable[str], parts: Iterable[str]) -> None:
        """Let new files take their places, and drop the parts that are in them.

        Args:
            names: of files that `new_file` wrote.
            parts: names of the parts.

        Raises:
            OSError: the system refused; a later `finish` goes on.
        """
        replaces = {name: state_of(self._target / name) for name in names}
        text = json.dumps({"replaces": replaces, "parts": list(parts)})
        with atomic_io.atomic_write(self.folder / _READY) as f:
            f.write(text.encode("utf-8", "surrogateescape"))
        self.finish()

    def finish(self) -> None:
        """Bring a publication that was decided to its end, and remove what is of no use any more.

        Raises:
            OSError: the system refused; nothing is lost.
        """
        if not self.folder.is_dir():
            return
        ready = self.ready()
        if ready is not None:
            for name in ready.replaces:
                if (self.folder / (_NEW + name)).exists():
                    atomic_io.replace_file(self.folder / (_NEW + name), self._target / name)
            for part in ready.parts:
                (self.folder / part).unlink(missing_ok=True)
            atomic_io.fsync_folder(self.folder)  # the parts are gone for good before the file that lists them as merged
        (self.folder / _READY).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name.startswith(_NEW) or (path.name.startswith(".") and path.name.endswith(".part")):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # there are parts still, or files of somebody else
            self.folder.rmdir()
            atomic_io.fsync_folder(self.folder.parent)

    def current(self, name: str) -> Path:
        """Where the content of a file of the table lies, a publication that was decided included."""
        new = self.folder / (_NEW + name)
        ready = self.ready()
        return new if ready is not None and name in ready.replaces and new.exists() else self._target / name

    def ready(self) -> Ready | None:
        """The publication that was decided and not yet brought to its end.

        None, too, when an old file has changed meanwhile: then the table is somebody else's, and the parts still count.
        """
        try:
            data = json.loads((self.folder / _READY).read_bytes().decode("utf-8", "surrogateescape"))
            old = {name: None if state is None else tuple(state) for name, state in data["replaces"].items()}
            ready = Ready(old, tuple(data["parts"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{escape_surrogates(str(self.folder / _READY))}: damaged: {error}"
            raise TableError(what, hint="move this file away: the parts beside it are then merged anew") from error
        waiting = [name for name in old if (self.folder / (_NEW + name)).exists()]
        return ready if all(state_of(self._target / name) == old[name] for name in waiting) else None

    def _numbered(self) -> list[str]:
        try:
            return sorted((n for n in os.listdir(self.folder) if _NAME.fullmatch(n)), key=lambda n: (len(n), n))
        except (FileNotFoundError, NotADirectoryError):
            return []


def state_of(path: Path) -> State | None:
    """What tells whether somebody wrote a file anew; None when there is none."""
    try:
        s = path.stat()
    except FileNotFoundError:
        return None
    return s.st_ino, s.st_size, s.st_mtime_ns
