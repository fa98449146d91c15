"""Globs: which paths are globs, where they start, what they match, and the folders that they cannot search.

Wildcard characters are part of a name if a file or folder has exactly that name: `Movies [2019]/*.mp4` searches the
folder `Movies [2019]` if there is one.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from vidqa.common.file_identity import absolute_path
from vidqa.media.ignored_names import ignored_name


def is_glob(path: str) -> bool:
    """Return whether a path is a glob. A path that exists is not, whatever its name."""
    return not os.path.lexists(path) and glob.has_magic(_split(path)[1])


def glob_root(pattern: str) -> str:
    """Return the folder of a glob before its first wildcard."""
    return _split(pattern)[0] or os.curdir


def matches(pattern: str) -> list[str]:
    """Return the files and folders that a glob matches, in no particular order."""
    return glob.glob(_escaped(pattern), recursive=True)


def unreadable_folders(pattern: str) -> Iterator[tuple[str, OSError]]:
    """Yield the folders that `glob.glob` skips without a word because they cannot be listed."""
    pattern = _escaped(pattern)
    while (parent := os.path.dirname(pattern)) != pattern:
        pattern = parent
        for folder in glob.iglob(os.path.join(pattern, ""), recursive=True) if glob.has_magic(pattern) else [pattern]:
            if folder != pattern and ignored_name(os.path.basename(folder.rstrip(os.sep)), is_folder=True):
                continue
            try:
                os.scandir(folder or os.curdir).close()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                yield absolute_path(folder), error
        if not glob.has_magic(pattern):
            return


def _split(pattern: str) -> tuple[str, str]:
    """Return the folder before the first wildcard, which may be empty, and the rest."""
    folder = pattern
    while glob.has_magic(folder) and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder, pattern[len(folder) :]


def _escaped(pattern: str) -> str:
    folder, rest = _split(pattern)
    return glob.escape(folder) + rest
