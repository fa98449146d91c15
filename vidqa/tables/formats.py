"""Read and write tables as Parquet, CSV, JSONL or Arrow files, in batches; the suffix selects the format.

Memory does not grow with the table, because only a few batches of 50,000 rows exist at a time. CSV stores
`frame_times_s` as JSON text and distinguishes an empty string (`""`) from a null (nothing between the commas). All
strings are quoted, so that line breaks inside an answer do not confuse other readers. JSON has no NaN: JSONL stores
null instead.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars as pl
from polars.io.plugins import register_io_source

from vidqa.common import atomic_io
from vidqa.common.disk_space import os_errors, write_remedy
from vidqa.common.path_text import escape_surrogates
from vidqa.errors import TableError
from vidqa.tables import spreadsheet_csv
from vidqa.tables.schema import REQUIRED, SCHEMA, align, check_values

Format = Literal["parquet", "csv", "jsonl", "arrow"]

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}

#: Every Arrow reader opens files without compression and without string views, which exist only since Arrow 15.
ARROW_OPTIONS: dict[str, Any] = {"compression": "uncompressed", "compat_level": pl.CompatLevel.oldest()}

#: Rows per batch. Memory holds a few batches at a time, plus the buffers of the format.
BATCH_ROWS = 50_000
_JSONL_BYTES = 32 << 20


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that a table's suffix selects.

    Raises:
        TableError: unknown suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        what = f"{escape_surrogates(str(path))}: the name of a table must end in .parquet, .csv, .jsonl or .arrow"
        raise TableError(what, hint=f"{escape_surrogates(Path(path).stem)}.parquet")
    return SUFFIXES[suffix]


def read_table(path: str | os.PathLike[str]) -> pl.DataFrame:
    r"""Read a table written by vidqa.

    Args:
        path: a file ending in .parquet, .csv, .jsonl or .arrow, or the folder of a dataset.

    Returns:
        All columns of `SCHEMA` in order. In `path` and `root`, bytes that are not valid UTF-8 are escaped as `\xff`
        (see vidqa/common/path_text.py).

    Raises:
        TableError: the file does not exist, does not have the format that its suffix selects, or has a wrong schema.
            The message names the column.
    """
    names = sorted(Path(path).glob("part-*.parquet")) if os.path.isdir(path) else [path]
    frames = [frame for name in names for frame in batches(name)]
    return pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)


def batches(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Read and validate a table in batches.

    Args:
        path: a single file; its suffix selects the format.
        columns: columns to return; None for all. If all columns of the file have the types of `SCHEMA`, only these are
            read. Otherwise all are read, so that a wrong column is reported before any work starts.

    Yields:
        Frames with the columns of `SCHEMA`, or those in `columns`, in order.

    Raises:
        TableError: as `read_table`, once the faulty batch is reached.
    """
    form, source = format_of(path), escape_surrogates(os.fspath(path))
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TableError(f"{source}: cannot be read: {error.strerror or error}") from error
    try:
        for frame, needs_align in _READERS[form](path, columns):
            if needs_align:
                frame = align(frame, source, from_text=form == "csv")
                yield frame if columns is None else frame.select(columns)
            else:
                check_values(frame, source)
                yield frame
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        hint = "write to another file with --out; this one is left as it is"
        raise TableError(f"{source}: not a {form} table: {first_line(error)}", hint=hint) from error


def write(frame: pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table atomically and sync it to disk.

    Args:
        frame: all columns of `SCHEMA`.
        path: the suffix selects the format.

    Raises:
        TableError: the disk is full, or the folder is not writable; the old table is unchanged.
    """
    try:
        write_batches([frame], path)
    except OSError as error:
        raise write_error(path, error) from error


def write_batches(
    frames: Iterable[pl.DataFrame],
    path: str | os.PathLike[str],
    *,
    for_spreadsheets: bool = False,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write batches as one table, atomically, without holding more than a few of them in memory.

    Args:
        frames: batches with all columns of `SCHEMA`.
        path: the suffix selects the format.
        for_spreadsheets: escape formulas in CSV; see spreadsheet_csv.py. Other formats need no escapes.
        metadata: of a Parquet file; other formats ignore it.

    Raises:
        OSError: the file cannot be written; the old file is unchanged.
        TableError: raised by `frames`.
    """
    form = format_of(path)
    try:
        with atomic_io.atomic_write(path) as f, os_errors(f, pl.exceptions.PolarsError):
            if form == "csv" and for_spreadsheets:
                _sink_csv(frames, f, for_spreadsheets=True)
            elif form == "parquet":
                _sink_parquet(frames, f, metadata or {})
            else:
                _WRITERS[form](frames, f)
    except pl.exceptions.PolarsError as error:
        raise OSError(str(error)) from error


def write_error(path: str | os.PathLike[str], error: Exception, kept: str = "the old table is unchanged") -> TableError:
    """Return the error for a table that cannot be written.

    Args:
        path: the table.
        error: from the operating system or polars.
        kept: what is still safe; ends the hint.
    """
    reason = getattr(error, "strerror", None) or error
    what = f"{escape_surrogates(os.fspath(path))}: the table cannot be written: {reason}"
    remedy = write_remedy(error, os.path.dirname(path) or ".")
    return TableError(what, hint=f"{remedy}, or use another --out; {kept}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _lazy(frames: Iterable[pl.DataFrame], schema: Any) -> pl.LazyFrame:
    """Return a lazy frame whose sink pulls the batches one by one."""

    def source(columns: Any, predicate: Any, n_rows: Any, batch_size: Any) -> Iterator[pl.DataFrame]:
        yield from frames  # a sink requests all columns and rows

    return register_io_source(source, schema=schema)


def _source(path: str | os.PathLike[str]) -> Any:
    """Return the path, or an open file if the path is not valid UTF-8, which polars does not accept."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return open(name, "rb")  # closed when the last reference is dropped
    return name


def _typed_reader(scan: Callable[..., pl.LazyFrame]) -> Callable[..., Iterator[tuple[pl.DataFrame, bool]]]:
    def read(path: str, columns: Sequence[str] | None) -> Iterator[tuple[pl.DataFrame, bool]]:
        lazy = scan(_source(path), glob=False)
        schema = lazy.collect_schema()
        is_valid = all(SCHEMA.get(name) == dtype for name, dtype in schema.items()) and all(
            c in schema for c in REQUIRED
        )
        exact = columns is not None and is_valid
        if columns is not None and exact:  # columns that an earlier version did not write are null
            lazy = lazy.select(c if c in schema else pl.lit(None, SCHEMA[c]).alias(c) for c in columns)
        frames = lazy.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True)
        n = 0
        for n, frame in enumerate(frames, 1):  # noqa: B007 - counts the batches
            yield frame, not exact
        if not n:  # no rows: the columns still need validation
            yield lazy.head(0).collect(), not exact

    return read


def _read_csv(path: str, columns: Sequence[str] | None) -> Iterator[tuple[pl.DataFrame, bool]]:
    lazy, n = pl.scan_csv(_source(path), infer_schema=False, glob=False), 0
    is_escaped = spreadsheet_csv.is_for_spreadsheets(path)
    for n, frame in enumerate(lazy.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True), 1):  # noqa: B007
        yield spreadsheet_csv.unescape_formulas(frame) if is_escaped else frame, True
    if not n:
        yield pl.DataFrame(schema=lazy.collect_schema()), True


def _read_jsonl(path: str, columns: Sequence[str] | None) -> Iterator[tuple[pl.DataFrame, bool]]:
    with open(path, "rb") as f:
        while lines := f.readlines(_JSONL_BYTES):  # line breaks inside strings are escaped
            yield pl.read_ndjson(io.BytesIO(b"".join(lines)), infer_schema_length=None), True


def _for_csv(frame: pl.DataFrame) -> pl.DataFrame:
    numbers = pl.col("frame_times_s").cast(pl.List(pl.String)).list.join(", ")
    return frame.with_columns(
        pl.concat_str(pl.lit("["), numbers, pl.lit("]")).alias("frame_times_s"),
        pl.col("created_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"),
    )


def _sink_csv(frames: Iterable[pl.DataFrame], f: BinaryIO, *, for_spreadsheets: bool = False) -> None:
    frames = map(_for_csv, frames)
    if for_spreadsheets:
        frames = map(spreadsheet_csv.escape_formulas, frames)
    schema = SCHEMA | {"frame_times_s": pl.String(), "created_at": pl.String()}
    # Strings are quoted, because other readers take an unquoted carriage return for the end of the line.
    lazy = _lazy(frames, schema)
    lazy.sink_csv(f, include_bom=for_spreadsheets, quote_style="non_numeric", maintain_order=True)


def _sink_parquet(frames: Iterable[pl.DataFrame], f: BinaryIO, metadata: dict[str, str]) -> None:
    lazy = _lazy(frames, SCHEMA)
    lazy.sink_parquet(f, compression="zstd", row_group_size=BATCH_ROWS, maintain_order=True, metadata=metadata)


_READERS: dict[Format, Callable[..., Iterator[tuple[pl.DataFrame, bool]]]] = {
    "parquet": _typed_reader(pl.scan_parquet),
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "arrow": _typed_reader(pl.scan_ipc),
}
_WRITERS: dict[Format, Callable[[Iterable[pl.DataFrame], BinaryIO], Any]] = {
    "csv": _sink_csv,
    "jsonl": lambda frames, f: _lazy(frames, SCHEMA).sink_ndjson(f, maintain_order=True),
    "arrow": lambda frames, f: _lazy(frames, SCHEMA).sink_ipc(
        f, **ARROW_OPTIONS, record_batch_size=BATCH_ROWS, maintain_order=True
    ),
}
