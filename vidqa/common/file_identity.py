"""Whether two paths lead to the same file, and absolute paths that do."""

from __future__ import annotations

import os


def absolute_path(path: str) -> str:
    """Return the absolute form of a path. Symbolic links stay, because they are how the user names the folder.

    Only `..` after a link is resolved: `os.path.abspath` would remove both, and name another folder than the system.

    Args:
        path: relative to the working directory, or absolute.
    """
    lexical = os.path.abspath(path)
    if os.pardir not in path.split(os.sep):
        return lexical
    real = os.path.realpath(path)
    return lexical if os.path.realpath(lexical) == real else real


def is_same_file(a: str, b: str) -> bool:
    """Return whether two paths lead to the same file: through links, mounts, or names that differ in case only.

    Two hard links are two files, because each of them can be removed or replaced without the other.

    Args:
        a: a path.
        b: another one.
    """
    try:
        first, second = os.stat(a), os.stat(b)
    except (OSError, ValueError):
        return False
    # Some network file systems have no inode numbers.
    if first.st_ino and (first.st_dev, first.st_ino) != (second.st_dev, second.st_ino):
        return False
    has_one_name = first.st_ino != 0 and first.st_nlink <= 1
    return has_one_name or os.path.realpath(a) == os.path.realpath(b)
