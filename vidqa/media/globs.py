"""Globs: which paths are globs, where they start, and the folders that they cannot search."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from vidqa.common.file_identity import absolute_path
from vidqa.media.ignored_names import ignored_name


def is_glob(path: str) -> bool:
    """Return whether a path is a glob. An existing file with wildcard characters in its name is not."""
    return not os.path.lexists(path) and glob.has_magic(path)


def glob_root(pattern: str) -> str:
    """Return the folder of a glob before its first wildcard."""
    folder = pattern
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir


def unreadable_folders(pattern: str) -> Iterator[tuple[str, OSError]]:
    """Yield the folders that `glob.glob` skips without a word because they cannot be listed."""
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
