"""Which files were removed or replaced (`--prune-missing`). An unmounted disk must not look like an empty archive."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from fnmatch import fnmatch
from functools import lru_cache, partial
from itertools import chain
from typing import TYPE_CHECKING

from vidqa.cache.media_index import MediaIndex
from vidqa.common.file_identity import absolute_path
from vidqa.errors import MediaError
from vidqa.media.globs import glob_root, is_glob
from vidqa.media.scan import ExcludedPath, PathProblem
from vidqa.media.selection.path_patterns import PathPatterns
from vidqa.pipeline.run.hashing import hash_files
from vidqa.records import MediaItem

if TYPE_CHECKING:  # `vidqa table prune` needs no model
    from vidqa.pipeline.run.bookkeeping import RunBookkeeper
    from vidqa.pipeline.run.run_context import RunContext
    from vidqa.pipeline.run.scanning import FoundMedia


def prune_table(run: RunContext, bookkeeper: RunBookkeeper, searched: Sequence[str], found: FoundMedia) -> None:
    """Drop the rows of removed and replaced files. Excluded files keep their rows, also if they were renamed.

    Args:
        run: its files have been processed.
        bookkeeper: of the run.
        searched: files, folders and globs of the run.
        found: files and paths that the scan of `searched` found.
    """
    n_after_limit = run.summary.excluded["--limit"]
    excluded = found.excluded + found.items[len(found.items) - n_after_limit :]
    patterns = run.options.files.patterns()
    with closing(MediaIndex(run.options.cache_dir)) as index:
        bookkeeper.prune(
            removed_files(searched, found.without_media, patterns),
            replaced_files(searched, index, patterns, excluded),
            partial(moved_files, excluded=excluded, paths=found.excluded_paths, index=index)
            if excluded or found.excluded_paths
            else None,
        )


def removed_files(
    searched: Sequence[str], problems: Sequence[PathProblem] = (), patterns: PathPatterns | None = None
) -> Callable[[str], bool]:
    """Return a function that returns whether the file at a path was removed.

    A file counts as removed only if the file system reports that it does not exist. An unreadable folder or a server
    that does not respond proves nothing. Neither does an empty folder or a dangling link on the way to the file, which
    is what an unmounted disk looks like, nor a searched path that leads to no media at all. Paths that the run did not
    search are never removed, and neither are those that patterns exclude; it does not matter through which symbolic
    link to a folder a file was found.

    Args:
        searched: files, folders and globs of the run.
        problems: paths without media, and unreadable ones, as the scan of `searched` reported them.
        patterns: of the run; None for those of `.vidqaignore` files alone.
    """
    without_media = {problem.path for problem in problems}
    roots = _Roots([path for path in searched if path not in without_media or not is_glob(path)], patterns)
    unknown = {form for path in without_media for form in _forms(path)}
    real_folder = lru_cache(1024)(os.path.realpath)  # the files of a folder are together

    def is_removed(path: str) -> bool:
        folder, name = os.path.split(path)
        for form in dict.fromkeys((path, os.path.join(real_folder(folder), name))):
            if (root := roots.of(form)) is not None:
                has_media = unknown.isdisjoint(_folders_above(form))
                return _does_not_exist(form) and has_media and _is_mounted(form, root)
        return False

    return is_removed


def moved_files(
    removed: Collection[str], excluded: Sequence[MediaItem], paths: Sequence[ExcludedPath], index: MediaIndex
) -> Iterator[tuple[str, MediaItem]]:
    """Yield files with the content of removed ones, and its media_id, among files that the run did not process.

    Args:
        removed: media_ids of removed files.
        excluded: files that exist. Only those with the size of a removed one are read, unless a size is unknown.
        paths: files that patterns exclude; folders are not entered.
        index: has the sizes of the contents that were hashed.
    """
    sizes = index.sizes(removed)
    wanted = set(sizes.values())
    existing = chain(excluded, filter(None, map(_item_of, paths)))
    candidates = [item for item in existing if len(sizes) < len(removed) or item.size in wanted]
    for item, media_id in hash_files(index, candidates):
        if isinstance(media_id, str) and media_id in removed:
            yield media_id, item


def _item_of(excluded: ExcludedPath) -> MediaItem | None:
    try:
        found = os.stat(excluded.path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    name = os.path.relpath(excluded.path, excluded.root)
    return MediaItem(excluded.path, excluded.root, name, found.st_size, found.st_mtime_ns)


def replaced_files(
    searched: Sequence[str],
    index: MediaIndex,
    patterns: PathPatterns | None = None,
    excluded: Sequence[MediaItem] = (),
) -> Callable[[str, str], bool]:
    """Return a function that returns whether the file at a path no longer has the content with a media_id.

    Args:
        searched: files, folders and globs of the run.
        index: has the content of the files that the run found.
        patterns: as for `removed_files`.
        excluded: files that the run did not process, which keep their rows.
    """
    roots = _Roots(searched, patterns)
    kept = {form for item in excluded for form in _forms(item.path)}

    def is_replaced(media_id: str, path: str) -> bool:
        forms = _forms(path)
        if not kept.isdisjoint(forms) or all(roots.of(form) is None for form in forms):
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


class _Roots:
    """The folders and files that the paths of a run search.

    Args:
        searched: files, folders and globs.
        patterns: exclude files below them; None for `.vidqaignore` files alone.
    """

    def __init__(self, searched: Sequence[str], patterns: PathPatterns | None) -> None:
        self._patterns = patterns or PathPatterns()
        self._plain: set[str] = set()  # there may be many: the files of a list
        self._globs: list[tuple[str, list[str]]] = []  # root, and the parts of the glob below it
        for path in searched:
            if is_glob(path):
                root = absolute_path(glob_root(path))
                self._globs += ((form, _parts(absolute_path(path), root)) for form in _forms(root))
            else:
                self._plain.update(_forms(path))

    def of(self, path: str) -> str | None:
        """Return the root below which a path was searched and not excluded; None if there is none."""
        roots = [above for above in (path, *_folders_above(path)) if above in self._plain]
        roots += (root for root, pattern in self._globs if _is_searched(path, root, pattern))
        return next((root for root in roots if self._patterns.exclusion(path, root) is None), None)


def _folders_above(path: str) -> Iterator[str]:
    while (folder := os.path.dirname(path)) != path:
        yield folder
        path = folder


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
