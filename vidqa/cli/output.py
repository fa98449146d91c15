"""Results as aligned tables for people, and as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.common.display import display_lines, display_path, display_text
from vidqa.common.path_text import escape_path, escape_surrogates

if TYPE_CHECKING:  # imports numpy
    from vidqa.records import AnswerRow


#: Keys whose values are file names.
_PATH_KEYS = frozenset({"path", "root", "media"})


def as_json(value: Any) -> str:
    """Return one line of JSON. Undecodable bytes of file names are escaped as in tables.

    Args:
        value: dataclasses become objects, paths and times become text.
    """
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def rows_as_json_lines(rows: Iterable[AnswerRow]) -> str:
    """Return one JSON object per line, with the columns of the table.

    Args:
        rows: to print.
    """
    return "".join(as_json(row) + "\n" for row in rows)


def rows_as_table(rows: Sequence[AnswerRow]) -> str:
    """Return aligned columns: file, segment, question, answer or error. Segment and question only if they vary.

    Args:
        rows: to print.
    """
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
        lines.append([display_text(cell) for cell in cells])
    return aligned(lines)


def answer_text(answer: str | None) -> str:
    """Return an answer as it is printed: unchanged for other programs, without control characters on a terminal.

    Args:
        answer: of the model, which may repeat any text that a video shows.
    """
    return display_lines(answer or "") if sys.stdout.isatty() else answer or ""


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text with aligned columns.

    Args:
        lines: cells without line breaks, the same number in every line.
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)] if lines else []
    return "".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip() + "\n"
        for line in lines
    )


def _plain(value: Any, is_path: bool = False) -> Any:
    """Convert a value to what `json` can write. Escaped file names can be unescaped again; other text cannot."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {escape_surrogates(str(key)): _plain(inner, key in _PATH_KEYS) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, is_path) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return escape_path(str(value))
    if isinstance(value, str):
        return escape_path(value) if is_path else escape_surrogates(value)
    return value
