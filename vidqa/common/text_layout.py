"""Text in columns of a terminal. Wide characters (CJK, emoji) take two columns, combining marks none.

Scope: text; whether there is a terminal, and how wide it is, is decided by the caller.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from vidqa.common.display import display_text

#: Shortest width of a column that is cut.
_MIN_WIDTH = 8
_ELLIPSIS = "…"


def text_width(text: str) -> int:
    """Return the number of terminal columns of a printable text."""
    return len(text) if text.isascii() else sum(map(_width, text))


def cut_text(text: str, width: int) -> str:
    """Return a text of at most `width` columns; if it is cut, it ends with an ellipsis."""
    if text_width(text) <= width:
        return text
    return text[: _fitting(text, width - 1)].rstrip() + _ELLIPSIS


def wrap_text(text: str, width: int, max_lines: int | None = None) -> list[str]:
    """Break a text into lines, at spaces where possible.

    Args:
        text: one printable line.
        width: columns per line.
        max_lines: the last line is cut if there would be more; None for no limit.
    """
    lines: list[str] = []
    rest = text
    while text_width(rest) > width and (max_lines is None or len(lines) < max_lines - 1):
        fitting = _fitting(rest, width)
        space = rest.rfind(" ", 0, fitting + 1)
        end = space if space > 0 else max(1, fitting)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*lines, cut_text(rest, width)]


def columns_of_text(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, max_lines: int = 3) -> str:
    """Return rows as aligned columns with a header.

    Control characters are escaped, and each cell is one line of text. Where the columns do not fit, the longest ones
    are narrowed; their cells are wrapped, and cut after some lines.

    Args:
        header: names of the columns.
        rows: one text per column.
        width: of the terminal, in columns; None if it is not limited.
        max_lines: lines per row.
    """
    table = [[display_text(cell) for cell in row] for row in (header, *rows)]
    widths = [max(text_width(row[i]) for row in table) for i in range(len(header))]
    if width is not None:
        _narrow(widths, width - 2 * (len(header) - 1), [text_width(name) for name in table[0]])
    return "".join(line + "\n" for row in table for line in _row_lines(row, widths, max_lines))


def _fitting(text: str, width: int) -> int:
    """Return how many characters from the start fit into `width` columns."""
    used = 0
    for number, c in enumerate(text):
        used += _width(c)
        if used > width:
            return number
    return len(text)


def _narrow(widths: list[int], available: int, header_widths: Sequence[int]) -> None:
    """Reduce the longest columns until all fit, but none below its header or `_MIN_WIDTH`."""
    least = [min(own, max(_MIN_WIDTH, header)) for own, header in zip(widths, header_widths, strict=True)]
    while sum(widths) > available:
        candidates = [i for i in range(len(widths)) if widths[i] > least[i]]
        if not candidates:
            return
        widest = max(candidates, key=lambda i: widths[i])
        others = [widths[i] for i in candidates if i != widest]
        # At once down to the next longest column, or as far as necessary.
        target = max(widths[widest] - (sum(widths) - available), least[widest], max(others, default=0))
        widths[widest] = target if target < widths[widest] else widths[widest] - 1


def _row_lines(row: Sequence[str], widths: Sequence[int], max_lines: int) -> list[str]:
    cells = [wrap_text(cell, max(1, width), max_lines) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for number in range(max(map(len, cells), default=0)):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        padded = [part + " " * (width - text_width(part)) for part, width in zip(parts, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def _width(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1
