"""Which files are really gone: for `--prune-missing`, which must not take a disk that is not mounted for an empty one.

Knows the file system only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence


def vanished(searched: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells of a place whether the file that lay there is gone.

    It is only when the system says that there is nothing: a folder that may not be read, or a server that does not
    answer, proves nothing; nor does an empty folder on the way to the file, for so a place looks where a disk is not
    mounted. Places outside of what the run searched are none of its business.

    Args:
        searched: files, folders and globs of the run.
    """
    roots = tuple(os.path.abspath(path) for path in searched)

    def gone(place: str) -> bool:
        root = next((root for root in roots if place == root or place.startswith(root.rstrip(os.sep) + os.sep)), None)
        if root is None or not _absent(place):
            return False
        if place == root:  # the file itself was named
            root = os.path.dirname(place)
        folder = os.path.dirname(place)
        while not os.path.isdir(folder) and len(folder) > len(root):  # also where a file has taken its name
            folder = os.path.dirname(folder)
        return _holds_something(folder)

    return gone


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
