"""Data frames <-> Parquet, CSV, JSONL and Arrow files, in pieces; the suffix picks the format. Knows no row's meaning.

A table is read and written in batches of some ten thousand rows, so that memory does not grow with it. CSV keeps
`frame_times_s` as JSON text and tells an empty text (`""`) from a null (nothing between the commas); all texts are
quoted, so that line ends inside an answer harm no reader. JSON has no NaN: in JSONL it becomes null.
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
from vidqa.common.path_text import escape_surrogates
from vidqa.errors import TableError
from vidqa.tables.schema import SCHEMA, align, check_values

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

#: Rows that are in memory at once while a table is read or written, give or take what the formats buffer.
BATCH_ROWS = 50_000
_JSONL_BYTES = 32 << 20


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format that a table's name asks for.

    Raises:
        TableError: unknown suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        what = f"{escape_surrogates(str(path))}: a table's name must end in .parquet, .csv, .jsonl or .arrow"
        raise TableError(what, hint=f"{escape_surrogates(Path(path).stem)}.parquet")
    return SUFFIXES[suffix]


def read_table(path: str | os.PathLike[str]) -> pl.DataFrame:
    """Read a table of vidqa, whatever its format.

    Args:
        path: ends in .parquet, .csv, .jsonl or .arrow, or is the folder of a data set.

    Returns:
        All columns of the contract in order, with their types. In `path` and `root` a byte that is no text stands as
        `\\xff` (see `names`).

    Raises:
        TableError: no such file, another format than the suffix says, or another schema; names the column.
    """
    names = sorted(Path(path).glob("part-*.parquet")) if os.path.isdir(path) else [path]
    frames = [frame for name in names for frame in batches(name)]
    return pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)


def batches(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Read and check a table piece by piece.

    Args:
        path: its suffix says the format.
        columns: which are wanted; None for all. Where the file has exactly the types of the contract, only these are
            read from it; otherwise all are read, so that a wrong one is named before any work begins.

    Returns:
        Frames with the columns of the contract (or those of `columns`) in order; none for a table without rows.

    Raises:
        TableError: as `schema.read_table`, when the piece that is at fault is reached.
    """
    form, source = format_of(path), escape_surrogates(os.fspath(path))
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TableError(f"{source}: cannot be read: {error.strerror or error}") from error
    try:
        for frame, whole in _READERS[form](path, columns):
            if whole:
                frame = align(frame, source, from_text=form == "csv")
                yield frame if columns is None else frame.select(columns)
            else:
                check_values(frame, source)
                yield frame
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "write to another file with --out; this one is left as it is"
        raise TableError(f"{source}: not a {form} table: {reason}", hint=hint) from error


def write(frame: pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table: when this returns it is on the disk, and before that the old one is.

    Args:
        frame: the columns of the contract.
        path: its suffix picks the format.

    Raises:
        TableError: no room, or the folder cannot be written; the old table is untouched.
    """
    try:
        write_batches([frame], path)
    except OSError as error:
        raise write_error(path, error) from error


def write_batches(frames: Iterable[pl.DataFrame], path: str | os.PathLike[str]) -> None:
    """Write frames as one table, whole or not at all, without holding more than a few of them.

    Raises:
        OSError: the system refused; the old file is untouched.
        TableError: raised by `frames`.
    """
    form = format_of(path)
    try:
        with atomic_io.atomic_write(path) as f:
            _WRITERS[form](frames, f)
    except pl.exceptions.PolarsError as error:  # polars wraps some of the system's errors in its own
        raise OSError(str(error)) from error


def write_error(
    path: str | os.PathLike[str], error: Exception, kept: str = "the table there is as it was"
) -> TableError:
    """What to tell a user when a table cannot be written.

    Args:
        path: the table.
        error: the system's.
        kept: what is not lost, at the end of the hint.
    """
    reason = getattr(error, "strerror", None) or error
    what = f"{escape_surrogates(os.fspath(path))}: the table cannot be written: {reason}"
    hint = f"free space or rights in {escape_surrogates(os.path.dirname(path) or '.')}, or another --out; {kept}"
    return TableError(what, hint=hint)


def first_line(error: Exception) -> str:
    """First line of an error's message, or the name of its type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _lazy(frames: Iterable[pl.DataFrame], schema: Any) -> pl.LazyFrame:
    """Frames that are pulled one by one by whoever sinks them."""

    def source(columns: Any, predicate: Any, n_rows: Any, batch_size: Any) -> Iterator[pl.DataFrame]:
        yield from frames  # a sink asks for everything

    return register_io_source(source, schema=schema)


def _source(path: str | os.PathLike[str]) -> Any:
    """What polars takes for a file: it knows no names that are not text."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return open(name, "rb")  # closed with the last reference
    return name


def _typed(scan: Callable[..., pl.LazyFrame]) -> Callable[..., Iterator[tuple[pl.DataFrame, bool]]]:
    def pieces(path: str, columns: Sequence[str] | None) -> Iterator[tuple[pl.DataFrame, bool]]:
        lazy = scan(_source(path), glob=False)
        exact = columns is not None and dict(lazy.collect_schema()) == SCHEMA
        if exact:
            lazy = lazy.select(columns)
        frames = lazy.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True)
        n = 0
        for n, frame in enumerate(frames, 1):  # noqa: B007 - counted
            yield frame, not exact
        if not n:  # no rows: the columns are checked all the same
            yield lazy.head(0).collect(), not exact

    return pieces


def _csv_pieces(path: str, columns: Sequence[str] | None) -> Iterator[tuple[pl.DataFrame, bool]]:
    lazy, n = pl.scan_csv(_source(path), infer_schema=False, glob=False), 0
    for n, frame in enumerate(lazy.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True), 1):  # noqa: B007
        yield frame, True
    if not n:
        yield pl.DataFrame(schema=lazy.collect_schema()), True


def _jsonl_pieces(path: str, columns: Sequence[str] | None) -> Iterator[tuple[pl.DataFrame, bool]]:
    with open(path, "rb") as f:
        while lines := f.readlines(_JSONL_BYTES):  # a line end inside a text is written \n
            yield pl.read_ndjson(io.BytesIO(b"".join(lines)), infer_schema_length=None), True


def _for_csv(frame: pl.DataFrame) -> pl.DataFrame:
    numbers = pl.col("frame_times_s").cast(pl.List(pl.String)).list.join(", ")
    return frame.with_columns(
        pl.concat_str(pl.lit("["), numbers, pl.lit("]")).alias("frame_times_s"),
        pl.col("created_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"),
    )


def _sink_csv(frames: Iterable[pl.DataFrame], f: BinaryIO) -> None:
    schema = SCHEMA | {"frame_times_s": pl.String(), "created_at": pl.String()}
    # All text quoted: a lone carriage return would otherwise stand bare and end the line for other readers.
    _lazy(map(_for_csv, frames), schema).sink_csv(f, quote_style="non_numeric", maintain_order=True)


_READERS: dict[Format, Callable[..., Iterator[tuple[pl.DataFrame, bool]]]] = {
    "parquet": _typed(pl.scan_parquet),
    "csv": _csv_pieces,
    "jsonl": _jsonl_pieces,
    "arrow": _typed(pl.scan_ipc),
}
_WRITERS: dict[Format, Callable[[Iterable[pl.DataFrame], BinaryIO], Any]] = {
    "parquet": lambda frames, f: _lazy(frames, SCHEMA).sink_parquet(
        f, compression="zstd", row_group_size=BATCH_ROWS, maintain_order=True
    ),
    "csv": _sink_csv,
    "jsonl": lambda frames, f: _lazy(frames, SCHEMA).sink_ndjson(f, maintain_order=True),
    "arrow": lambda frames, f: _lazy(frames, SCHEMA).sink_ipc(
        f, compression="zstd", record_batch_size=BATCH_ROWS, maintain_order=True
    ),
}
