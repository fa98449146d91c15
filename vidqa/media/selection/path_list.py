"""`--files-from`: a list of paths, one per line or separated by null bytes -> paths."""

from __future__ import annotations

import os
import sys

from vidqa.common.display import display_path
from vidqa.errors import UsageError

STDIN = "-"


def read_path_list(source: str, *, null: bool = False) -> list[str]:
    """Read paths. Nothing in them is special: a line that starts with `#` or a blank is a name.

    Args:
        source: a file, or `-` for stdin. Names are bytes, as the system has them, and need not be UTF-8.
        null: entries are separated by null bytes instead of line breaks (LF or CRLF).

    Returns:
        The entries in their order, without empty ones.

    Raises:
        UsageError: the list cannot be read, or has null bytes without `null`.
    """
    where = "--files-from -" if source == STDIN else f"--files-from {display_path(source)}"
    try:
        if source == STDIN:
            content = sys.stdin.buffer.read()
        else:
            with open(source, "rb") as file:
                content = file.read()
    except (OSError, ValueError) as error:
        hint = "name a file with one path per line, or - for stdin"
        raise UsageError(f"{where}: {getattr(error, 'strerror', None) or error}", hint=hint) from error
    if null:
        return [os.fsdecode(entry) for entry in content.split(b"\0") if entry]
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if b"\0" in line:
            hint = "pass -0 if null bytes separate the entries (find -print0); otherwise save the list as UTF-8"
            raise UsageError(f"{where}: line {number} has a null byte", hint=hint)
    return [os.fsdecode(name) for line in lines if (name := line.removesuffix(b"\r"))]
