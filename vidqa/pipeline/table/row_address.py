"""Rows by address: a number as `table head` shows it, or PATH[@SEGMENT] and a question id, which survive rewriting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vidqa.common.display import display_path, display_text, plural
from vidqa.errors import UsageError
from vidqa.tables.reader import TableReader
from vidqa.tables.row_lookup import CURRENT, NUMBER, numbered_row, rows_of_file

_SEGMENT = re.compile(r"(?P<path>.+)@(?P<start>\d+(\.\d*)?)(-(?P<end>\d+(\.\d*)?))?", re.DOTALL)
#: Segments are shown with at most three decimals.
_TOLERANCE_S = 0.0006
_MOST_LISTED = 8


def find_row(reader: TableReader, address: str, question_id: str | None = None) -> dict[str, Any]:
    """Return the row at an address, with the additional values `row` (its number) and `current`.

    Of several rows that match, a current one is preferred to superseded ones.

    Args:
        reader: the table.
        address: a row number counted from 1, or a path, which may be followed by `@START` or `@START-END` in seconds.
            Write `./7` for a file with the name `7`.
        question_id: of the row; needed if there are several questions about the file.

    Raises:
        UsageError: no row, or several rows match; the message lists these.
        TableError: the table cannot be read.
    """
    table = display_path(reader.name)
    if address.isascii() and address.isdigit():
        row = numbered_row(reader, int(address)) if int(address) else None
        if row is None:
            raise UsageError(
                f"{table} has no row {address}", hint=f"vidqa table head {table}; rows are numbered from 1"
            )
        if question_id not in (None, row["question_id"]):
            what = f"row {address} of {table} answers {row['question_id']!r}, not {question_id!r}"
            raise UsageError(what, hint="omit the question id, or use PATH instead of the number")
        return row
    found, start_s, end_s = rows_of_file(reader, address), None, None
    if not found and (match := _SEGMENT.fullmatch(address)):
        found = rows_of_file(reader, match["path"])
        start_s, end_s = float(match["start"]), None if match["end"] is None else float(match["end"])
    if not found:
        raise UsageError(f"{table} has no row about {display_path(address)}", hint=f"vidqa table head {table}")
    matching = [
        row
        for row in found
        if question_id in (None, row["question_id"])
        and (start_s is None or _is_close(row["start_s"], start_s))
        and (end_s is None or _is_close(row["end_s"], end_s))
    ]
    if not matching:
        raise UsageError(f"{table} has no such row about this file", hint=f"it has {_listed(found)}")
    current = [row for row in matching if row[CURRENT]] or matching
    if len(current) > 1:
        what = f"{plural(len(current), 'row')} of {table} match: add @SEGMENT or the question id, or use a row number"
        raise UsageError(what, hint=_listed(current))
    return current[0]


def segment_text(row: dict[str, Any]) -> str:
    """Return the segment of a row in seconds, such as `30-60`; empty if it has none.

    Args:
        row: has `start_s` and `end_s`.
    """
    if row["start_s"] is None:
        return ""
    return "-".join(
        f"{row[name]:.3f}".rstrip("0").rstrip(".") for name in ("start_s", "end_s") if row[name] is not None
    )


def _is_close(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= _TOLERANCE_S


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows with what distinguishes them."""
    texts = []
    for row in rows[:_MOST_LISTED]:
        segment = segment_text(row)
        name = f"{display_path(row['path'])}{f'@{segment}' if segment else ''} {display_text(row['question_id'])}"
        texts.append(f"{row[NUMBER]} ({name})")
    more = f" and {len(rows) - _MOST_LISTED:,} more" if len(rows) > _MOST_LISTED else ""
    return f"{', '.join(texts)}{more}"
