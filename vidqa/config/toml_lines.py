"""TOML files with the line number of every key, for error messages.

The standard library's parser does not return line numbers, so a second pass over the text finds where each key starts.
It runs after the parser and can assume valid TOML.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidqa.errors import UsageError

KeyPath = tuple[str | int, ...]

_MAX_DEPTH = 30

# A string, a comment, or a single character; only newlines and brackets outside strings and comments matter.
_PIECES = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|.', re.DOTALL)
_KEY = re.compile(r'\s*((?:"(?:\\.|[^"\\])*"|\'[^\']*\'|[^="\'])+)=')


@dataclass(frozen=True)
class TomlFile:
    """The values of a file. A key path lists keys and list indices from the top: `("question", 0, "id")`."""

    path: Path
    values: dict[str, Any]
    lines: dict[KeyPath, int]
    #: Command line options that set a value, as the user wrote them.
    options: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, *key_path: str | int) -> str:
        """Return `FILE:LINE` of a key, or the option that set it; for a missing key, that of the enclosing table."""
        while key_path and key_path not in self.lines and key_path not in self.options:
            key_path = key_path[:-1]
        return self.options.get(key_path) or f"{self.path}:{self.lines.get(key_path, 1)}"


def read_toml(path: Path) -> TomlFile:
    """Read a TOML file.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, or is not TOML; the message has file and line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8", hint="save the file as UTF-8") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at line (\d+), column \d+\)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1  # "at end of document"
        raise UsageError(f"{path}:{line}: not TOML: {re.sub(r' *[(]at .*[)]$', '', str(error))}") from error
    except RecursionError as error:
        raise UsageError(f"{path}:1: nested too deeply") from error
    except ValueError as error:  # Python refuses numbers of more than 4300 digits
        long = re.search(r"[\d_]{4300}", text)
        line = text.count("\n", 0, long.start()) + 1 if long else 1
        raise UsageError(f"{path}:{line}: not TOML: a number with thousands of digits") from error
    file = TomlFile(path, values, _lines(text))
    for key_path, fault in invalid_values(values):
        raise UsageError(f"{file.where(*key_path)}: `{dotted(key_path)}`: {fault}")
    return file


def dotted(key_path: Iterable[str | int]) -> str:
    """Return a key path as text: its keys joined by dots."""
    return ".".join(printable(key) for key in key_path if isinstance(key, str))


def printable(text: str) -> str:
    """Return text that is safe in a one-line message: text with control characters is quoted and escaped."""
    return text if text.isprintable() else json.dumps(text)


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """Return `; did you mean ...?` for a misspelled name, or an empty string if no valid name is similar."""
    near = difflib.get_close_matches(wrong, list(valid), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def invalid_values(value: Any, key_path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield (key path, problem) for values that the parser accepts but that no setting can have."""
    if len(key_path) > _MAX_DEPTH:
        yield key_path[:3], "nested too deeply"
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from invalid_values(inner, (*key_path, key))
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield key_path, "an integer that does not fit 64 bits"


def _lines(text: str) -> dict[KeyPath, int]:
    """Return the line of every table header and of every key outside inline tables."""
    lines: dict[KeyPath, int] = {}
    n_of_array: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        if statement.startswith("["):
            is_array = statement.startswith("[[")
            table = ()
            names = _names(statement.strip("[] \t"))
            for i, name in enumerate(names):
                table = (*table, name)
                if i == len(names) - 1 and is_array:
                    n_of_array[table] = n_of_array.get(table, -1) + 1
                if table in n_of_array:
                    lines.setdefault(table, line)
                    table = (*table, n_of_array[table])
                lines.setdefault(table, line)
        elif match := _KEY.match(statement):
            key_path = table
            for name in _names(match[1]):
                key_path = (*key_path, name)
                lines.setdefault(key_path, line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield (first line, text without comments) of each header and each `key = value`."""
    line, first, depth = 1, 1, 0
    statement = ""
    for match in _PIECES.finditer(text + "\n"):
        piece = match[0]
        if piece == "\n" and depth == 0:
            if statement.strip():
                yield first, statement.strip()
            statement = ""
        elif not piece.startswith("#"):
            if not statement.strip():
                first = line
            statement += piece
            depth += (piece in "[{") - (piece in "]}")
        line += piece.count("\n")


def _names(dotted: str) -> list[str]:
    """Return the parts of a dotted key, which may be quoted."""
    inner: Any = tomllib.loads(f"{dotted.strip()} = 0")
    names = []
    while isinstance(inner, dict):
        name, inner = next(iter(inner.items()))
        names.append(name)
    return names
