"""Which files were removed or replaced (`--prune-missing`). An unmounted disk must not look like an empty archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import lru_cache

from vidqa.cache.media_index import MediaIndex
from vidqa.common.file_identity import absolute_path
from vidqa.errors import MediaError
from vidqa.media.globs import glob_root, is_glob
from vidqa.media.scan import PathProblem
from vidqa.records import MediaItem


def removed_files(searched: Sequence[str], problems: Sequence[PathProblem] = ()) -> Callable[[str], bool]:
    """Return a function that returns whether the file at a path was removed.

    A file counts as removed only if the file system reports that it does not exist. An unreadable folder or a server
    that does not respond proves nothing. Neither does an empty folder or a dangling link on the way to the file, which
    is what an unmounted disk looks like, nor a searched path that leads to no media at all. Paths that the run did not
    search are never removed; it does not matter through which symbolic link to a folder a file was found.

    Args:
        searched: files, folders and globs of the run.
        problems: paths without media, and unreadable ones, as the scan of `searched` reported them.
    """
    without_media = {problem.path for problem in problems}
    useful = [path for path in searched if path not in without_media or not is_glob(path)]
    roots = [root for path in useful for root in _search_roots(path)]
    unknown = tuple(os.path.join(form, "") for path in without_media for form in _forms(path))
    real_folder = lru_cache(1024)(os.path.realpath)  # the files of a folder are together

    def is_removed(path: str) -> bool:
        folder, name = os.path.split(path)
        for form in dict.fromkeys((path, os.path.join(real_folder(folder), name))):
            root = next((root for root, pattern in roots if _is_searched(form, root, pattern)), None)
            if root is not None:
                return _does_not_exist(form) and not form.startswith(unknown) and _is_mounted(form, root)
        return False

    return is_removed


def replaced_files(searched: Sequence[str], index: MediaIndex) -> Callable[[str, str], bool]:
    """Return a function that returns whether the file at a path no longer has the content with a media_id.

    Args:
        searched: files, folders and globs of the run.
        index: has the content of the files that the run found.
    """
    roots = [root for path in searched for root in _search_roots(path)]

    def is_replaced(media_id: str, path: str) -> bool:
        if not any(_is_searched(form, *root) for form in _forms(path) for root in roots):
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


def _is_mounted(path: str, root: str) -> bool:
    """Return whether the folder of a file that does not exist, or else the nearest one above it, has other entries."""
    if path == root:  # the user named this file
        root = os.path.dirname(path)
    folder = os.path.dirname(path)
    while not os.path.isdir(folder) and len(folder) > len(root):  # also if a file now has the name of the folder
        if os.path.islink(folder):
            return False
        folder = os.path.dirname(folder)
    return _has_entries(folder)


def _search_roots(path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the folder or file that a path of the user searches, and the parts of its glob below that."""
    if not is_glob(path):
        yield from ((form, []) for form in _forms(path))
        return
    root = absolute_path(glob_root(path))
    pattern = _parts(absolute_path(path), root)
    yield from ((form, pattern) for form in _forms(root))


def _forms(path: str) -> list[str]:
    """Return a path as the user wrote it, and without symbolic links to folders."""
    path = absolute_path(path)
    folder, name = os.path.split(path)
    real = os.path.realpath(path) if os.path.isdir(path) else os.path.join(os.path.realpath(folder), name)
    return list(dict.fromkeys((path, real)))


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
