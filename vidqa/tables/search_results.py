"""The hits of a search -> a table file. A table of its own kind: not one that `describe` goes on with.

Knows records with flat fields and the formats of tables; does not know what was searched.
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
from vidqa.common.path_text import escape_path, escape_surrogates
from vidqa.errors import TableError
from vidqa.tables.formats import Format, format_of

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
    """See, before any work, that a table of hits may stand here: nothing, or an older one that it replaces.

    Raises:
        TableError: unknown suffix, no such folder, or a file that is no table of hits.
    """
    form, path = format_of(path), Path(path)
    name = escape_surrogates(str(path))
    if not path.parent.is_dir():
        what = f"{name}: the folder {escape_surrogates(str(path.parent))} does not exist"
        raise TableError(what, hint=f"mkdir -p {escape_surrogates(str(path.parent))}")
    if not path.exists():
        return
    try:
        columns = _columns(path, form)
    except (pl.exceptions.PolarsError, OSError, ValueError):
        columns = []
    if columns != list(SCHEMA):
        raise TableError(f"{name} is there and is no table of hits", hint="another --out; this file is left as it is")


def write_hits(hits: Sequence[DataclassInstance], path: str | os.PathLike[str]) -> None:
    """Write a table, whole or not at all, in the place of an older one.

    Args:
        hits: records with the fields of `SCHEMA`, in this order.
        path: its suffix picks Parquet, CSV, JSONL or Arrow.

    Raises:
        TableError: no room, or the folder cannot be written.
    """
    form = format_of(path)
    rows = [asdict(hit) for hit in hits]
    for row in rows:
        row |= {name: escape_path(row[name]) for name in ("path", "root")}
    frame = pl.DataFrame(rows, schema=SCHEMA, strict=True)
    try:
        with atomic_io.atomic_write(Path(path)) as f:
            _write(frame, f, form)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        what = f"{escape_surrogates(str(path))}: the table cannot be written: {reason}"
        raise TableError(what, hint="free space or rights there, or another --out") from error


def _write(frame: pl.DataFrame, f: BinaryIO, form: Format) -> None:
    if form == "parquet":
        frame.write_parquet(f, compression="zstd")
    elif form == "arrow":
        frame.write_ipc(f, compression="zstd")
    elif form == "jsonl":
        frame.write_ndjson(f)
    else:
        text: Any = frame.with_columns(pl.col("created_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"))
        text.write_csv(f, quote_style="non_numeric")


def _columns(path: Path, form: Format) -> list[str]:
    """Names of a file's columns; those of `SCHEMA` for a JSONL table without rows, which cannot tell."""
    if form == "parquet":
        return list(pl.read_parquet_schema(path))
    if form == "arrow":
        return list(pl.read_ipc_schema(path))
    if form == "csv":
        return pl.read_csv(path, n_rows=0).columns
    with path.open(encoding="utf-8") as f:
        first = f.readline()
    return list(json.loads(first)) if first else list(SCHEMA)
