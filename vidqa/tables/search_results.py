"""Write the results of a search to a table file.

Search results have columns of their own; they are not a table that `describe` can continue.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import polars as pl

from vidqa.common import atomic_io
from vidqa.common.disk_space import os_errors
from vidqa.common.output_paths import check_output_parent
from vidqa.common.path_text import escape_path, escape_surrogates
from vidqa.errors import TableError
from vidqa.tables.formats import ARROW_OPTIONS, Format, format_of, write_error
from vidqa.tables.spreadsheet_csv import escape_formulas

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: Column -> type, in order.
SCHEMA: dict[str, pl.DataType] = {
    "rank": pl.Int64(),
    "score": pl.Float64(),
    "text": pl.String(),
    "path": pl.String(),
    "root": pl.String(),
    "start_s": pl.Float64(),
    "end_s": pl.Float64(),
    "duration_s": pl.Float64(),
    "kind": pl.String(),
    "media_id": pl.String(),
    "model": pl.String(),
    "encoder_id": pl.String(),
    "vidqa_version": pl.String(),
    "created_at": pl.Datetime("us", "UTC"),
}


def check_target(path: str | os.PathLike[str]) -> None:
    """Check before the search starts that its results can be written: to a new file, or over older results.

    Raises:
        UsageError: the folder does not exist.
        TableError: unknown suffix, or an existing file that is not a table of search results.
    """
    form, path = format_of(path), Path(path)
    name = escape_surrogates(str(path))
    check_output_parent(path)
    if not path.exists():
        return
    try:
        columns = _columns(path, form)
    except (pl.exceptions.PolarsError, OSError, ValueError):
        columns = []
    if columns != list(SCHEMA):
        what = f"{name} exists and is not a table of search results"
        raise TableError(what, hint="use another --out; this file is left as it is")


def write_results(
    results: Sequence[DataclassInstance], path: str | os.PathLike[str], *, for_spreadsheets: bool = False
) -> None:
    """Write search results atomically, replacing older ones.

    Args:
        results: records with the fields of `SCHEMA`, in this order.
        path: the suffix selects Parquet, CSV, JSONL or Arrow.
        for_spreadsheets: escape formulas in CSV.

    Raises:
        TableError: the disk is full, or the folder is not writable.
    """
    form = format_of(path)
    rows = [asdict(result) for result in results]
    for row in rows:
        row |= {name: escape_path(row[name]) for name in ("path", "root")}
    frame = pl.DataFrame(rows, schema=SCHEMA, strict=True)
    try:
        with atomic_io.atomic_write(path) as f, os_errors(f, pl.exceptions.PolarsError):
            _write(frame, f, form, for_spreadsheets)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise write_error(path, error) from error


def _write(frame: pl.DataFrame, f: BinaryIO, form: Format, for_spreadsheets: bool) -> None:
    if form == "parquet":
        frame.write_parquet(f, compression="zstd")
    elif form == "arrow":
        frame.write_ipc(f, **ARROW_OPTIONS)
    elif form == "jsonl":
        frame.write_ndjson(f)
    else:
        text: Any = frame.with_columns(pl.col("created_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"))
        text = escape_formulas(text) if for_spreadsheets else text
        text.write_csv(f, include_bom=for_spreadsheets, quote_style="non_numeric")


def _columns(path: Path, form: Format) -> list[str]:
    """Return the column names of a file; those of `SCHEMA` for an empty JSONL file, which has no column names."""
    if form == "parquet":
        return list(pl.read_parquet_schema(path))
    if form == "arrow":
        return list(pl.read_ipc_schema(path))
    if form == "csv":
        return pl.read_csv(path, n_rows=0).columns
    with path.open(encoding="utf-8") as f:
        first = f.readline()
    return list(json.loads(first)) if first else list(SCHEMA)
