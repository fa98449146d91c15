"""Columns of a table and their types; converts answer rows to data frames and back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from typing import Any, get_args

import polars as pl

from vidqa.common.path_text import escape_path, escape_surrogates, unescape_path
from vidqa.errors import TableError
from vidqa.records import ROW_COLUMNS, AnswerRow, Status

_TYPES: dict[str, pl.DataType] = {
    **dict.fromkeys(("start_s", "end_s", "confidence", "duration_s", "fps"), pl.Float64()),
    **dict.fromkeys(
        ("n_segments", "n_repeated_frames", "n_visual_tokens", "n_prompt_tokens", "n_answer_tokens", "width", "height"),
        pl.Int64(),
    ),
    "frame_times_s": pl.List(pl.Float64()),
    "created_at": pl.Datetime("us", "UTC"),
}
#: Column -> type, in order.
SCHEMA: dict[str, pl.DataType] = {name: _TYPES.get(name, pl.String()) for name in ROW_COLUMNS}
#: Columns that every table has. Tables of earlier versions may lack others, which are then null.
REQUIRED = ("media_id", "path", "root", "question_id", "question", "status", "model_id", "settings_id")

#: The path of the file of a row, as `journal.row_keys.file_path` joins root and path.
FILE_PATH = pl.concat_str(pl.col("root").str.strip_chars_end("/"), pl.lit("/"), pl.col("path"))

_NEVER_NULL = tuple(c for c in REQUIRED if c != "media_id")
_STATUSES = get_args(Status)
_NAMES = ("path", "root")
_HINT = "write to another file with --out; this one is left as it is"


def rows_to_frame(rows: Iterable[AnswerRow]) -> pl.DataFrame:
    """Convert rows to a data frame with the columns `SCHEMA`.

    Raises:
        ValueError: `created_at` has no time zone.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ROW_COLUMNS}
    for row in rows:
        for name in ROW_COLUMNS:
            columns[name].append(_to_cell(name, getattr(row, name)))
    return pl.DataFrame(columns, schema=SCHEMA, strict=True)


def frame_to_rows(frame: pl.DataFrame) -> list[AnswerRow]:
    """Convert a data frame with the columns of `SCHEMA` to rows. Escaped file names become the original names."""
    rows = []
    for values in frame.iter_rows(named=True):
        for name in _NAMES:
            values[name] = unescape_path(values[name])
        if values["frame_times_s"] is not None:
            values["frame_times_s"] = tuple(values["frame_times_s"])
        rows.append(AnswerRow(**values))
    return rows


def align(frame: pl.DataFrame, source: str, *, from_text: bool = False) -> pl.DataFrame:
    """Convert a frame read from a file to the columns and types of `SCHEMA`.

    Args:
        frame: as the reader of the format returned it.
        source: name of the file, for errors.
        from_text: all values are strings to be parsed, as in CSV.

    Returns:
        All columns of `SCHEMA` in order; columns that an earlier version did not write are null.

    Raises:
        TableError: a column is unknown, missing or of the wrong type, or a value is invalid; the message names the
            column.
    """
    unknown = [c for c in frame.columns if c not in SCHEMA]
    if unknown:
        raise TableError(
            f"{source}: column `{unknown[0]}` does not belong to a table of this version of vidqa", hint=_HINT
        )
    missing = [c for c in REQUIRED if c not in frame.columns]
    if missing:
        raise TableError(f"{source}: column `{missing[0]}` is missing", hint=_HINT)
    columns = []
    for name, dtype in SCHEMA.items():
        if name not in frame.columns:
            columns.append(pl.Series(name, [None] * frame.height, dtype=dtype))
            continue
        try:
            columns.append(_parsed(frame[name], dtype) if from_text else _cast(frame[name], dtype))
        except (pl.exceptions.PolarsError, ValueError) as error:
            what = f"{source}: column `{name}` cannot be read as {dtype}: {str(error).splitlines()[0]}"
            raise TableError(what, hint=_HINT) from error
    aligned = pl.DataFrame(columns)
    check_values(aligned, source)
    return aligned


def check_values(frame: pl.DataFrame, source: str) -> None:
    """Check that no required value is null and that every status is valid.

    Args:
        frame: some or all columns of `SCHEMA`, with their types.
        source: name of the file, for errors.

    Raises:
        TableError: a required value is null, or a status is invalid; the message names the column.
    """
    for name in _NEVER_NULL:
        if name in frame.columns and frame[name].null_count():
            raise TableError(f"{source}: column `{name}` has missing values", hint=_HINT)
    if "status" in frame.columns:
        invalid = frame.filter(~pl.col("status").is_in(_STATUSES))["status"]
        if len(invalid):
            valid = ", ".join(_STATUSES)
            raise TableError(f"{source}: column `status` has the value {invalid[0]!r}, not one of {valid}", hint=_HINT)


def _to_cell(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return escape_path(value) if name in _NAMES else escape_surrogates(value)
    if isinstance(value, tuple):
        return list(value)
    if name == "created_at" and value is not None:
        if value.tzinfo is None:
            raise ValueError(f"created_at needs a time zone, got {value!r}")
        return value.astimezone(UTC)
    return value


def _cast(series: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Cast values of a typed format without changing any of them; other programs may store integers as floats.

    Raises:
        ValueError: the type cannot be cast, or a value would change.
    """
    have = series.dtype
    if have == dtype:
        return series
    if have == pl.Null:
        return series.cast(dtype)
    if have == pl.String and isinstance(dtype, pl.Datetime):
        return _parsed(series, dtype)
    both_numbers = have.is_numeric() and dtype.is_numeric()
    both_text = have in (pl.Categorical, pl.Enum) and dtype == pl.String
    both_lists = isinstance(have, pl.List | pl.Array) and isinstance(dtype, pl.List)
    both_datetimes = isinstance(have, pl.Datetime) and isinstance(dtype, pl.Datetime) and have.time_zone is not None
    if not (both_numbers or both_text or both_lists or both_datetimes):
        raise ValueError(f"its type is {have}")
    if have.is_float() and dtype.is_integer():
        series = series.fill_nan(None)  # how other programs write a null number
        if not (series.drop_nulls() == series.drop_nulls().round()).all():
            raise ValueError("some values are not integers")
    return series.cast(dtype, strict=True)


def _parsed(series: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Parse the values of a string column."""
    if dtype == pl.String:
        return series
    if isinstance(dtype, pl.Datetime):
        return series.str.to_datetime(time_unit="us", time_zone="UTC", strict=True).cast(dtype)
    if isinstance(dtype, pl.List):
        odd = series.drop_nulls().filter(~series.drop_nulls().str.contains(r"^\s*\[.*\]\s*$"))
        if len(odd):
            raise ValueError(f"{odd[0]!r} is not a list")
        inner = series.to_frame("x").select(
            pl.col("x").str.strip_chars("[] ").str.split(",").list.eval(pl.element().filter(pl.element() != ""))
        )["x"]
        stripped = inner.to_frame("x").select(pl.col("x").list.eval(pl.element().str.strip_chars()))["x"]
        return stripped.cast(dtype, strict=True).alias(series.name)
    return series.str.strip_chars().cast(dtype, strict=True)
