"""Files that other programs wrote: complete files, and JSON settings read strictly.

An interrupted download or an unfinished clone may leave other content in place of a file. Settings come with every
kind of mistake, and each one must be reported with its file and its key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidqa.errors import BundleError

#: Hint for a file whose content is not what was published.
DOWNLOAD_AGAIN = "download the file again: it may be incomplete, or an error page that a server sent instead"
#: What a clone of a repository contains in place of a large file until Git LFS has fetched it.
_LFS_POINTER = b"version https://git-lfs.github.com/"
#: Sizes above this are mistakes, and would overflow in torch.
LARGEST_SIZE = 1 << 31


class JsonSettings(dict[str, Any]):
    """A JSON object that stores where it comes from. The getters check types and ranges.

    A key that is missing has its default. A key that is null is an error, because null is not the default.

    Args:
        values: the content.
        file: the file that it comes from.
        where: key of the object inside the file, with a dot at its end; empty for the file itself.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, where: str = "") -> None:
        super().__init__(values)
        self.file = file
        self.where = where

    def error(self, key: str, problem: str) -> BundleError:
        """Return an error about a key, for the caller to raise."""
        return BundleError(f"{self.file}: {self.where}{key}: {problem}")

    def whole(self, key: str, default: int, minimum: int = 1, maximum: int = LARGEST_SIZE) -> int:
        """Return a whole number; 2.0 counts as 2.

        Raises:
            BundleError: the value is of another type or out of range.
        """
        if key not in self:
            return default
        value = as_whole(self[key])
        if value is None or not minimum <= value <= maximum:
            at = f"of at least {minimum}" if value is None or value < minimum else f"of at most {maximum}"
            raise self.error(key, f"must be a whole number {at}, got {self[key]!r:.80}")
        return value

    def number(self, key: str, default: float, minimum: float = 0.0) -> float:
        """Return a finite number.

        Raises:
            BundleError: the value is of another type or below the minimum.
        """
        if key not in self:
            return default
        value = as_number(self[key])
        if value is None or value < minimum:
            raise self.error(key, f"must be a number of at least {minimum:g}, got {self[key]!r:.80}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false.

        Raises:
            BundleError: the value is of another type.
        """
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, got {value!r:.80}")
        return value

    def text(self, key: str, default: str, choices: tuple[str, ...] = ()) -> str:
        """Return a string, one of `choices` if there are any.

        Raises:
            BundleError: the value is of another type, or not supported.
        """
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, got {value!r:.80}")
        if choices and value not in choices:
            raise self.error(key, f"{value!r:.80} is not supported; supported: {', '.join(choices)}")
        return value

    def section(self, key: str) -> JsonSettings | None:
        """Return an object inside this one; None if it is missing or null.

        Raises:
            BundleError: the value is not an object.
        """
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, got {value!r:.80}")
        return JsonSettings(value, self.file, f"{self.where}{key}.")


def read_settings(path: Path) -> JsonSettings:
    """Read a JSON file of settings.

    Args:
        path: the file, in UTF-8.

    Raises:
        BundleError: the file cannot be read, is not a JSON object, has a key twice, or a number that is not finite.
    """
    try:
        read_magic(path)
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(f"{path} cannot be read: {e}") from e
    if not isinstance(data, dict):
        raise BundleError(f"{path}: must contain a JSON object, got {type(data).__name__}")
    settings = JsonSettings(data, path)
    for key, value in _numbers("", data):  # Python reads NaN, Infinity and 1e999 without complaint
        if not math.isfinite(value):
            raise settings.error(key, f"must be a finite number, got {value}")
    return settings


def read_magic(path: Path) -> bytes:
    """Return the first bytes of a file, after checking that it is not a placeholder.

    Raises:
        BundleError: the file is empty, or a pointer to a file that Git LFS has not fetched.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as f:
        start = f.read(len(_LFS_POINTER))
    if not start:
        raise BundleError(f"{path}: an empty file", hint=DOWNLOAD_AGAIN)
    if start == _LFS_POINTER:
        raise BundleError(f"{path}: a Git LFS pointer instead of the file itself", hint="git lfs pull")
    return start


def as_whole(value: object) -> int | None:
    """Return a whole number as int, also if it is written as 2.0; None for anything else."""
    if type(value) is float and math.isfinite(value) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def as_number(value: object) -> float | None:
    """Return a finite number as float; None for anything else, and for integers that are too large for a float."""
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_unset(value: object) -> bool:
    """Return whether a setting is switched off: null, false, empty. The number 0 is a value like any other."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return found


def _numbers(where: str, value: object) -> Iterator[tuple[str, float]]:
    """Yield all floats in a JSON value, with their full keys."""
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(f"{where}.{key}" if where else key, inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _numbers(f"{where}[{i}]", inner)
