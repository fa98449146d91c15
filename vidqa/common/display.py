"""The size of the terminal that a progress bar is drawn on."""

from __future__ import annotations

import os
from typing import Any, TextIO

from vidqa.errors import ItemError


def bar_size(stream: TextIO) -> dict[str, Any]:
    """Arguments for tqdm: it measures the terminal itself, but for one that does not tell its size.

    A terminal of 0 columns or rows (some containers, serial lines, pty of a script) means "unknown"; tqdm would draw
    nothing on it.
    """
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):  # no terminal, closed, or no file at all
        return {"dynamic_ncols": True}
    if columns > 0 and rows > 0:
        return {"dynamic_ncols": True}
    return {"ncols": columns or 80, "nrows": rows or 24}


def display_path(path: str) -> str:
    """The path as one printable line: undecodable bytes and line breaks are written as escapes."""
    return "".join(c if c.isprintable() else _escaped(c) for c in path)


def message_without_path(error: ItemError, path: str) -> str:
    """The sentence of an error, for a place where its file is named already: equal causes read equal."""
    return error.what.removeprefix(f"{display_path(path)}: ")


def _escaped(c: str) -> str:
    byte = ord(c) - 0xDC00  # how Python keeps a byte of a name that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else c.encode("unicode_escape").decode()
