"""Which files are really gone: for `--prune-missing`, which must not take a disk that is not mounted for an empty one.

Knows the file system only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch

from vidqa.media.scan import glob_root, is_glob


def vanished(searched: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells of a place whether the file that lay there is gone.

    It is only when the system says that there is nothing: a folder that may not be read, or a server that does not
    answer, proves nothing; nor does an empty folder on the way to the file, for so a place looks where a disk is not
    mounted. Places outside of what the run searched are none of its business.

    Args:
        searched: files, folders and globs of the run.
    """
    roots = tuple(_search(path) for path in searched)

    def gone(place: str) -> bool:
        root = next((root for root, pattern in roots if _below(place, root, pattern)), None)
        if root is None or not _absent(place):
            return False
        if place == root:  # the file itself was named
            root = os.path.dirname(place)
        folder = os.path.dirname(place)
        while not os.path.isdir(folder) and len(folder) > len(root):  # also where a file has taken its name
            folder = os.path.dirname(folder)
        return _holds_something(folder)

    return gone


def _search(path: str) -> tuple[str, list[str]]:
    """The folder (or file) that a path of the user searches, and the names that a glob asks for below it."""
    if not is_glob(path):
        return os.path.abspath(path), []
    root = os.path.abspath(glob_root(path))
    return root, _names(os.path.abspath(path), root)


def _below(place: str, root: str, pattern: list[str]) -> bool:
    if place != root and not place.startswith(root.rstrip(os.sep) + os.sep):
        return False
    return _matches(_names(place, root), pattern)


def _names(place: str, root: str) -> list[str]:
    return [name for name in place[len(root) :].split(os.sep) if name]


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether a glob finds a file, or a folder above it, which is searched with all below it."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return _matches(names, pattern[1:]) or (bool(names) and _matches(names[1:], pattern))
    return bool(names) and fnmatch(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _absent(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _holds_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
