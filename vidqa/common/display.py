"""Values as text for people: paths, counts, bytes, durations, and the size of progress bars."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, TextIO

from vidqa.errors import ItemError

#: Zero width non-joiner and joiner, which Python does not consider printable.
_JOINERS = "\u200c\u200d"


def display_path(path: str) -> str:
    """Return a path as one printable line; undecodable bytes and line breaks become escapes."""
    return _printable(path)


def display_text(text: str) -> str:
    """Return any text as one printable line: white space becomes a space, other control characters become escapes.

    Characters that change the direction of text count as control characters. The joiners that emoji and some scripts
    need stay.
    """
    return _printable(" ".join(text.split()), _JOINERS)


def display_lines(text: str) -> str:
    """Return any text with its line breaks and tabs, but with escapes for all other control characters."""
    return _printable(text, _JOINERS + "\n\t")


def message_without_path(error: ItemError, path: str) -> str:
    """Return the message of an error without the path at its start, for use where the path is already shown."""
    return error.what.removeprefix(f"{display_path(path)}: ")


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: `1 file`, `5,000 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def counts(numbers: Mapping[str, int]) -> str:
    """Return counts with their names, the largest first: `12 ok, 3 failed`."""
    by_size = sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{number:,} {name}" for name, number in by_size)


def human_bytes(n_bytes: float) -> str:
    """Return a size such as `1.5 GB`, in steps of 1000 as disks are sold and as `--max-size` is read."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_duration(seconds: float) -> str:
    """Return a duration such as `4.2 s`, `3 min 20 s` or `2 h 5 min`; `unknown` for a number that is not finite."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def bar_size(stream: TextIO) -> dict[str, Any]:
    """Return tqdm's arguments for the width of a progress bar.

    tqdm measures the terminal itself, but prints nothing if the terminal reports 0 columns or rows (some containers,
    serial lines, a script's pty). A size is set in that case.
    """
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):  # not a terminal, closed, or not a real file
        return {"dynamic_ncols": True}
    if columns > 0 and rows > 0:
        return {"dynamic_ncols": True}
    return {"ncols": columns or 80, "nrows": rows or 24}


def _printable(text: str, keep: str = "") -> str:
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    byte = ord(c) - 0xDC00  # Python keeps an undecodable byte of a file name as a lone surrogate
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else c.encode("unicode_escape").decode()
