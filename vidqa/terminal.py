"""The size of the terminal that a progress bar is drawn on."""

from __future__ import annotations

import os
from typing import Any, TextIO


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
