"""Values -> text for people and for machines. Knows how things look; does not know where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.common.display import display_path
from vidqa.common.path_text import escape_path, escape_surrogates

if TYPE_CHECKING:  # numpy comes with it
    from vidqa.records import AnswerRow


#: Keys whose values are names of files.
_NAMES = frozenset({"path", "root", "media"})


def as_json(value: Any) -> str:
    """One line of JSON: records as objects, paths and times as text, undecodable bytes of names as in tables."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def rows_as_json_lines(rows: Iterable[AnswerRow]) -> str:
    """One object a line, with the columns of the table."""
    return "".join(as_json(row) + "\n" for row in rows)


def rows_as_table(rows: Sequence[AnswerRow]) -> str:
    """Aligned columns: file, segment if there are several, question if there are several, answer or error."""
    several_questions = len({row.question for row in rows}) > 1
    segmented = len({(row.root, row.path) for row in rows}) < len({(row.root, row.path, row.start_s) for row in rows})
    lines = []
    for row in rows:
        cells = [display_path(row.path)]
        if segmented:
            cells.append("" if row.start_s is None else f"{row.start_s:.1f}-{row.end_s:.1f}")
        if several_questions:
            cells.append(row.question)
        cells.append(row.answer or (f"[{row.error_kind}] {row.error}" if row.error_kind else f"[{row.status}]"))
        lines.append([cell.replace("\n", " ") for cell in cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)] if lines else []
    return "".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) + "\n"
        for line in lines
    )


def _plain(value: Any, is_name: bool = False) -> Any:
    """What `json` can write. Names of files are escaped so that they can be found again, other text for show."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {escape_surrogates(str(key)): _plain(inner, key in _NAMES) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, is_name) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return escape_path(str(value))
    if isinstance(value, str):
        return escape_path(value) if is_name else escape_surrogates(value)
    return value
