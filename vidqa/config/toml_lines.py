"""A TOML file -> its values, and the line where each key stands.

The standard library's reader gives no lines, so a second look at the text finds where keys begin. It may assume that
the text is right, for the reader was there first. Does not know which keys there should be.
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

Place = tuple[str | int, ...]

_DEEPEST = 30

# A piece of text in which only the newline and the brackets mean something, or one in which nothing does.
_PIECES = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|.', re.DOTALL)
_KEY = re.compile(r'\s*((?:"(?:\\.|[^"\\])*"|\'[^\']*\'|[^="\'])+)=')


@dataclass(frozen=True)
class TomlFile:
    """The values of a file. Places are keys and list indices from the top: `("question", 0, "id")`."""

    path: Path
    values: dict[str, Any]
    lines: dict[Place, int]
    options: dict[Place, str] = field(default_factory=dict)  # what options of the command put there, as they were given

    def where(self, *place: str | int) -> str:
        """`FILE:LINE` of a place, or the option that set it; of what it stands in when it is not there itself."""
        while place and place not in self.lines and place not in self.options:
            place = place[:-1]
        return self.options.get(place) or f"{self.path}:{self.lines.get(place, 1)}"


def read_toml(path: Path) -> TomlFile:
    """Read a TOML file.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or not TOML; names file and line.
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
    except ValueError as error:  # Python reads no number of more than 4300 digits
        long = re.search(r"[\d_]{4300}", text)
        line = text.count("\n", 0, long.start()) + 1 if long else 1
        raise UsageError(f"{path}:{line}: not TOML: a number of thousands of digits") from error
    file = TomlFile(path, values, _lines(text))
    for place, fault in unusable(values):
        raise UsageError(f"{file.where(*place)}: `{title(place)}`: {fault}")
    return file


def title(place: Iterable[str | int]) -> str:
    """A place for people: its keys with dots between them."""
    return ".".join(shown(key) for key in place if isinstance(key, str))


def shown(text: str) -> str:
    """A text for a message, which is one line and moves no cursor: as it is, or quoted with escapes."""
    return text if text.isprintable() else json.dumps(text)


def meant(wrong: str, right: Iterable[str]) -> str:
    """`; did you mean ...?` for a misspelt name, or nothing where no name is near."""
    near = difflib.get_close_matches(wrong, list(right), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def unusable(value: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """What the standard library's reader lets through, but no setting can be: (place, sentence)."""
    if len(place) > _DEEPEST:
        yield place[:3], "nested too deeply"
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unusable(inner, (*place, key))
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield place, "a whole number that does not fit 64 bits"


def _lines(text: str) -> dict[Place, int]:
    """Place -> line of every table header and every key outside inline tables."""
    lines: dict[Place, int] = {}
    n_of_array: dict[Place, int] = {}
    table: Place = ()
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
            place = table
            for name in _names(match[1]):
                place = (*place, name)
                lines.setdefault(place, line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(line of its beginning, text without comments) of each header and each `key = value`."""
    line, began, depth = 1, 1, 0
    statement = ""
    for match in _PIECES.finditer(text + "\n"):
        piece = match[0]
        if piece == "\n" and depth == 0:
            if statement.strip():
                yield began, statement.strip()
            statement = ""
        elif not piece.startswith("#"):
            if not statement.strip():
                began = line
            statement += piece
            depth += (piece in "[{") - (piece in "]}")
        line += piece.count("\n")


def _names(dotted: str) -> list[str]:
    """The parts of a dotted key, whose parts may be quoted."""
    inner: Any = tomllib.loads(f"{dotted.strip()} = 0")
    names = []
    while isinstance(inner, dict):
        name, inner = next(iter(inner.items()))
        names.append(name)
    return names
