"""Data frames <-> Parquet, CSV, JSONL and Arrow files; the suffix picks the format. Does not know what rows mean.

CSV keeps `frame_times_s` as JSON text and tells an empty text (`""`) from a null (nothing between the commas); all
texts are quoted, so that line ends inside an answer harm no reader. JSON has no NaN: in JSONL it becomes null.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars as pl

from vidqa import fsio
from vidqa.errors import TableError
from vidqa.tables.names import visible
from vidqa.tables.schema import SCHEMA, align

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


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format that a table's name asks for.

    Raises:
        TableError: unknown suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        what = f"{visible(str(path))}: a table's name must end in .parquet, .csv, .jsonl or .arrow"
        raise TableError(what, hint=f"{visible(Path(path).stem)}.parquet")
    return SUFFIXES[suffix]


def read(path: str | os.PathLike[str]) -> pl.DataFrame:
    """Read and check a table; see `schema.read_table`."""
    form, source = format_of(path), visible(str(path))
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TableError(f"{source}: cannot be read: {error.strerror or error}") from error
    if not data and form == "jsonl":
        return pl.DataFrame(schema=SCHEMA)  # what a JSONL table without rows looks like
    try:
        frame = _READERS[form](data)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "write to another file with --out; this one is left as it is"
        raise TableError(f"{source}: not a {form} table: {reason}", hint=hint) from error
    return align(frame, source, from_text=form == "csv")


def write(frame: pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table: when this returns it is on the disk, and before that the old one is.

    Args:
        frame: the columns of the contract.
        path: its suffix picks the format.

    Raises:
        TableError: no room, or the folder cannot be written; the old table is untouched.
    """
    form, path = format_of(path), Path(path)
    try:
        with fsio.commit(path) as f:
            _WRITERS[form](frame, f)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        what = f"{visible(str(path))}: the table cannot be written: {reason}"
        hint = f"free space or rights in {visible(str(path.parent))}, or another --out; the table there is as it was"
        raise TableError(what, hint=hint) from error


def _write_csv(frame: pl.DataFrame, f: BinaryIO) -> None:
    numbers = pl.col("frame_times_s").cast(pl.List(pl.String)).list.join(", ")
    text = frame.with_columns(
        pl.concat_str(pl.lit("["), numbers, pl.lit("]")).alias("frame_times_s"),
        pl.col("created_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"),
    )
    # All text quoted: a lone carriage return would otherwise stand bare and end the line for other readers.
    text.write_csv(f, quote_style="non_numeric")


_READERS: dict[Format, Callable[[bytes], pl.DataFrame]] = {
    "parquet": lambda data: pl.read_parquet(data),
    "csv": lambda data: pl.read_csv(data, infer_schema=False),
    "jsonl": lambda data: pl.read_ndjson(data, infer_schema_length=None),
    "arrow": lambda data: pl.read_ipc(data),
}
_WRITERS: dict[Format, Callable[[pl.DataFrame, BinaryIO], Any]] = {
    "parquet": lambda frame, f: frame.write_parquet(f, compression="zstd"),
    "csv": _write_csv,
    "jsonl": lambda frame, f: frame.write_ndjson(f),
    "arrow": lambda frame, f: frame.write_ipc(f, compression="zstd"),
}
