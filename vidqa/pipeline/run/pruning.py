"""Which files were removed or replaced (`--prune-missing`). An unmounted disk must not look like an empty archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch

from vidqa.cache.media_index import MediaIndex
from vidqa.errors import MediaError
from vidqa.media.scan import glob_root, is_glob
from vidqa.records import MediaItem


def removed_files(searched: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that returns whether the file at a path was removed.

    A file counts as removed only if the file system reports that it does not exist. An unreadable folder or a server
    that does not respond proves nothing. Neither does an empty folder on the way to the file, because that is what an
    unmounted disk looks like. Paths that the run did not search are never removed.

    Args:
        searched: files, folders and globs of the run.
    """
    roots = tuple(_search_root(path) for path in searched)

    def is_removed(path: str) -> bool:
        root = next((root for root, pattern in roots if _is_searched(path, root, pattern)), None)
        if root is None or not _does_not_exist(path):
            return False
        if path == root:  # the user named this file
            root = os.path.dirname(path)
        folder = os.path.dirname(path)
        while not os.path.isdir(folder) and len(folder) > len(root):  # also if a file now has the name of the folder
            folder = os.path.dirname(folder)
        return _has_entries(folder)

    return is_removed


def replaced_files(searched: Sequence[str], index: MediaIndex) -> Callable[[str, str], bool]:
    """Return a function that returns whether the file at a path no longer has the content with a media_id.

    Args:
        searched: files, folders and globs of the run.
        index: has the content of the files that the run found.
    """
    roots = tuple(_search_root(path) for path in searched)

    def is_replaced(media_id: str, path: str) -> bool:
        if not any(_is_searched(path, root, pattern) for root, pattern in roots):
            return False
        try:
            now = os.stat(path)
        except OSError:
            return False
        item = MediaItem(path, os.path.dirname(path), os.path.basename(path), now.st_size, now.st_mtime_ns)
        try:
            return index.media_id(item) != media_id
        except MediaError:  # it cannot be read now: that proves nothing
            return False

    return is_replaced


def _search_root(path: str) -> tuple[str, list[str]]:
    """Return the folder or file that a path of the user searches, and the parts of its glob below that."""
    if not is_glob(path):
        return os.path.abspath(path), []
    root = os.path.abspath(glob_root(path))
    return root, _parts(os.path.abspath(path), root)


def _is_searched(path: str, root: str, pattern: list[str]) -> bool:
    if path != root and not path.startswith(root.rstrip(os.sep) + os.sep):
        return False
    return _matches(_parts(path, root), pattern)


def _parts(path: str, root: str) -> list[str]:
    return [name for name in path[len(root) :].split(os.sep) if name]


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Return whether a glob matches a file, or a folder above it, which is then searched recursively."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return _matches(names, pattern[1:]) or (bool(names) and _matches(names[1:], pattern))
    return bool(names) and fnmatch(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _does_not_exist(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _has_entries(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
