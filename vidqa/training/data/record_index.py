"""Random access to the records of a file of conversations: JSON list, JSON lines or Parquet.

The offsets of the records are found once and cached by the path, size and modification time of the file. So the second
start of a training run reads only the records it needs, even from a file of gigabytes. Random access to Parquet is
slow: its rows are converted to JSON lines next to the index, block by block.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vidqa.cache.feature_store import mark_used
from vidqa.cache.key import RECORDS_FOLDER
from vidqa.common import atomic_io
from vidqa.common.display import bar_size
from vidqa.errors import TrainError, UsageError
from vidqa.training.data.json_scanner import Scanned, layout_of, scan_json
from vidqa.training.data.sample import SampleError

log = logging.getLogger(__name__)

#: Version of the cached data.
INDEX_FORMAT = 2
#: Two changes within one clock tick of a file system have the same modification time; a tick of FAT is two seconds.
_TICK_NS = 2_000_000_000
_BLOCK_ROWS = 4096


class RecordFile:
    """The records of one file. It can be pickled and used in several processes, because every read opens the file.

    Args:
        path: path of the file.
        cache_dir: root of the feature cache.
        progress: show a progress bar on stderr while a file is read for the first time.

    Raises:
        UsageError: the file cannot be read, or contains no records.
    """

    def __init__(self, path: str | Path, cache_dir: str | Path, *, progress: bool = False) -> None:
        self.path = Path(path)
        layout = layout_of(self.path)
        found = os.stat(self.path)
        state = digest([found.st_size, found.st_mtime_ns, INDEX_FORMAT])
        index = Path(cache_dir, RECORDS_FOLDER, f"{digest([str(self.path.absolute())])}-{state}.npz")
        self.index = index
        self.data = index.with_suffix(".jsonl") if layout == "parquet" else self.path
        scanned = _load(index, found.st_mtime_ns) if self.data.exists() else None
        if scanned is None:
            start_ns = time.time_ns()
            with _bar(self.path, found.st_size, progress) as advance:
                if layout == "parquet":
                    _write_lines(self.path, self.data)
                    lines = scan_json(self.data, "lines")
                    scanned = Scanned(lines.spans, atomic_io.sha256_of_file(self.path), found.st_size)
                else:
                    scanned = scan_json(self.path, layout, advance=advance)
            _save(index, scanned, start_ns)
        if not len(scanned.spans):
            raise UsageError(f"{self.path}: contains no records")
        self.spans, self.sha256, self.size = scanned.spans, scanned.sha256, scanned.size
        self._state = _state(self.data)

    def __len__(self) -> int:
        return len(self.spans)

    def record(self, number: int) -> dict[str, Any]:
        """Read one record.

        Raises:
            SampleError: `bad_json`: it is not a valid JSON object.
            TrainError: the file was changed or removed since it was opened.
        """
        start, end = (int(offset) for offset in self.spans[number])
        try:
            with self.data.open("rb") as f:
                found = os.fstat(f.fileno())
                if (found.st_size, found.st_mtime_ns) != self._state:
                    raise TrainError(f"{self.path}: was changed during the run", hint="start again")
                f.seek(start)
                text = f.read(end - start)
        except OSError as e:
            raise TrainError(f"{self.path}: can no longer be read: {e.strerror or e}") from e
        try:
            record = json.loads(text.decode("utf-8-sig"))
        except ValueError as e:  # also for invalid UTF-8
            raise SampleError("bad_json", f"from byte {start}: {e}") from e
        except RecursionError as e:
            raise SampleError("bad_json", f"from byte {start}: nested too deeply") from e
        if not isinstance(record, dict):
            raise SampleError("bad_json", f"from byte {start}: expected an object, not {type(record).__name__}")
        return record


def digest(parts: list[object]) -> str:
    """Return a digest of 20 hex digits, for a file name."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _state(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


@contextmanager
def _bar(path: Path, size: int, progress: bool) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on stderr; yields a function to call with the number of bytes read."""
    from tqdm import tqdm

    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False, "disable": not progress}
    with tqdm(total=size, desc=f"records of {path.name}", **options, **bar_size(sys.stderr)) as bar:
        yield bar.update


def _load(index: Path, mtime_ns: int) -> Scanned | None:
    try:
        with np.load(index, allow_pickle=False) as stored:
            read_ns = int(stored["read_ns"])
            if abs(read_ns - mtime_ns) <= _TICK_NS:
                return None  # changed just before it was read: a later change may have the same modification time
            spans, sha256, size = stored["spans"], str(stored["sha256"]), int(stored["size"])
        mark_used(index)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError) as e:
        log.warning("damaged index %s (%s): scanning the file again", index, e)
        return None
    return Scanned(spans, sha256, size) if spans.ndim == 2 and spans.dtype == np.int64 else None


def _save(index: Path, found: Scanned, read_ns: int) -> None:
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with atomic_io.atomic_write(index) as f:
            np.savez(
                f,
                spans=found.spans,
                sha256=np.array(found.sha256),
                size=np.array(found.size),
                read_ns=np.array(read_ns),
            )
        for old in index.parent.glob(f"{index.stem.partition('-')[0]}-*"):  # indexes of earlier versions of the file
            if not old.name.startswith(index.stem):
                old.unlink(missing_ok=True)
    except OSError as e:  # only makes the next start slower
        log.warning("cannot cache the index of records in %s: %s", index.parent, e.strerror or e)


def _write_lines(path: Path, lines: Path) -> None:
    """Convert Parquet to JSON lines, a block of rows at a time."""
    import polars as pl

    try:
        table = pl.scan_parquet(path)
        n_rows = int(table.select(pl.len()).collect().item())
        if binary := [name for name, kind in table.collect_schema().items() if kind == pl.Binary]:
            hint = "write the images to files and name these in a column `image`"
            raise UsageError(f"{path}: column {binary[0]} contains bytes, not paths", hint=hint)
        lines.parent.mkdir(parents=True, exist_ok=True)
        with atomic_io.atomic_write(lines) as f:
            for start in range(0, n_rows, _BLOCK_ROWS):
                for row in table.slice(start, _BLOCK_ROWS).collect().iter_rows(named=True):
                    f.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n")
    except OSError as e:
        raise TrainError(
            f"{path}: cannot be converted to JSON lines in {lines.parent}: {e.strerror or e}",
            hint="free some disk space, or use another cache folder: --cache-dir (VIDQA_CACHE)",
        ) from e
    except pl.exceptions.PolarsError as e:
        raise UsageError(f"{path}: not readable as Parquet: {e}") from e
