"""Paths, folders and globs -> media items, sorted and without duplicates. Content decides, not the suffix.

The first bytes suffice for nearly every file. A container is opened only if they do not: an unknown binary, or a
container that may contain video under an audio suffix. This happens in decoder processes, because such a file may crash
or hang FFmpeg.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from vidqa.common.display import message_without_path
from vidqa.common.file_identity import absolute_path
from vidqa.errors import MediaError, UsageError
from vidqa.media.files import file_error, ignore_reason
from vidqa.media.globs import glob_root, is_glob, matches, unreadable_folders
from vidqa.media.ignored_names import INCOMPLETE, ignored_name, is_being_downloaded
from vidqa.media.selection.path_patterns import Exclusion, PathPatterns
from vidqa.records import MediaItem

#: For opening ambiguous files: time limit per file, and number of parallel processes.
_PROBE_TIMEOUT_S = 60.0
_N_PROBE_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class IgnoredPath:
    """A file or folder that was found but gets no row."""

    path: str
    reason: str


@dataclass(frozen=True)
class PathProblem:
    """A path that was passed to the scan and leads to no media, or a file or folder that cannot be read."""

    path: str  # as passed to the scan, or absolute
    reason: str


@dataclass(frozen=True)
class ExcludedPath:
    """A file that patterns exclude, or a folder that was therefore not entered."""

    path: str  # a folder ends in a slash
    root: str  # the searched folder
    why: Exclusion


@dataclass(frozen=True)
class ScanResult:
    """Result of a scan. Every file that was found is in one of the first four lists."""

    items: tuple[MediaItem, ...]  # sorted by the bytes of the path, as the others
    ignored: tuple[IgnoredPath, ...] = ()
    problems: tuple[PathProblem, ...] = ()
    excluded: tuple[ExcludedPath, ...] = ()
    all_excluded: tuple[PathProblem, ...] = ()  # paths that lead to excluded files only, which is no error

    def counts(self) -> dict[str, int]:
        """Return the number of ignored paths by reason, most frequent first."""
        return dict(Counter(ignored.reason for ignored in self.ignored).most_common())


def scan(paths: Sequence[str], patterns: PathPatterns | None = None) -> ScanResult:
    """Find media files.

    A file that is named explicitly always becomes an item if it exists, whatever the patterns. Folders are searched
    recursively. A path is treated as a glob only if nothing has that name; its matches follow the rules for folders.

    Args:
        paths: files, folders and globs, relative to the working directory or absolute.
        patterns: exclude files and folders; None for those of `.vidqaignore` files alone.

    Returns:
        The items, the ignored and excluded paths with their reasons, and the problems: paths among `paths` that do not
        exist or contain no media, and files and folders that cannot be read. Of several paths to the same file, one
        becomes an item: an explicitly named path, else a regular entry rather than a link, else the first one found.

    Raises:
        UsageError: `paths` is empty or contains an empty path, or a `.vidqaignore` is invalid.
    """
    if not paths or not all(map(os.fspath, paths)):  # an empty path is usually an unset variable of a script
        what = "a path is missing" if not paths else "one of the paths is empty"
        raise UsageError(what, hint="pass a file or folder")
    state = _Scan(patterns or PathPatterns())
    named: list[str] = []
    searched: list[str] = []
    for path in paths:
        (searched if _is_search(path) else named).append(path)
    for path in sorted(named, key=os.fsencode):
        state.add_named(path)
    for path in searched:
        state.search(path)
    state.probe_ambiguous()
    return state.result()


def named_item(path: str) -> MediaItem:
    """Return the item of a file that the user named.

    Args:
        path: relative to the working directory, or absolute.

    Raises:
        MediaError: missing, permission, not_media (a folder, pipe or device), unreadable.
    """
    return _named_item(path)[0]


def _named_item(path: str) -> tuple[MediaItem, os.stat_result]:
    absolute = absolute_path(path)
    try:
        found = os.stat(absolute)
    except (OSError, ValueError) as error:
        raise file_error(absolute, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise MediaError("not_media", "not a regular file")
    root, name = os.path.split(absolute)
    return MediaItem(absolute, root, name, found.st_size, found.st_mtime_ns, named=True), found


def _is_search(path: str) -> bool:
    return os.path.isdir(path) or is_glob(path)


@dataclass
class _Search:
    """A folder or glob that was passed to the scan, and what was found there."""

    path: str
    n_items: int = 0
    n_problems: int = 0
    n_excluded: int = 0
    scanned_before: list[str] = field(default_factory=list)  # files and folders that it shares with earlier searches


@dataclass
class _Scan:
    patterns: PathPatterns
    items: list[MediaItem] = field(default_factory=list)
    ignored: list[IgnoredPath] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)  # path -> reason
    excluded: list[ExcludedPath] = field(default_factory=list)
    all_excluded: list[PathProblem] = field(default_factory=list)
    named: set[str] = field(default_factory=set)  # absolute paths of files that the caller named
    ambiguous: dict[str, tuple[MediaItem, str, _Search]] = field(default_factory=dict)  # with the reason if not a video
    searches: list[_Search] = field(default_factory=list)
    # By device and inode; the values are the paths under which they were found first.
    files_seen: dict[tuple[int, int] | str, str] = field(default_factory=dict)
    folders_seen: dict[tuple[int, int] | str, str] = field(default_factory=dict)

    def result(self) -> ScanResult:
        self.items.sort(key=lambda item: os.fsencode(item.path))
        self.report_searches_without_media()
        problems = (PathProblem(path, reason) for path, reason in self.problems.items())
        return ScanResult(
            tuple(self.items),
            tuple(sorted(self.ignored, key=lambda ignored: (os.fsencode(ignored.path), ignored.reason))),
            tuple(sorted(problems, key=lambda problem: os.fsencode(problem.path))),
            tuple(sorted(self.excluded, key=lambda excluded: os.fsencode(excluded.path))),
            tuple(self.all_excluded),
        )

    def ignore(self, path: str, reason: str) -> None:
        self.ignored.append(IgnoredPath(path, reason))

    def is_excluded(self, path: str, root: str, *, is_folder: bool) -> bool:
        """Return whether patterns exclude a file or folder, and record it; never a file that the caller named."""
        why = self.patterns.exclusion(path, root, is_folder=is_folder)
        if why is None or path in self.named or (is_folder and self.patterns.may_contain_included(path, root)):
            return False
        self.excluded.append(ExcludedPath(os.path.join(path, "") if is_folder else path, root, why))
        self.searches[-1].n_excluded += 1
        return True

    def report(self, path: str, error: OSError | MediaError) -> None:
        """Record a file or folder that cannot be read."""
        error = file_error(path, error) if isinstance(error, OSError) else error
        self.problems.setdefault(path, message_without_path(error, path))
        if self.searches:
            self.searches[-1].n_problems += 1

    def add_named(self, path: str) -> None:
        try:
            item, found = _named_item(path)
        except MediaError as error:
            self.problems.setdefault(path, message_without_path(error, absolute_path(path)))
            return
        self.named.add(item.path)
        if self.is_new(found, item.path):
            self.items.append(item)

    def search(self, path: str) -> None:
        self.searches.append(_Search(path))
        if os.path.isdir(path):
            self.walk(absolute_path(path), absolute_path(path))
            return
        root = absolute_path(glob_root(path))
        found = sorted(matches(path), key=os.fsencode)
        for match in map(absolute_path, found):
            name, is_folder = os.path.basename(match), os.path.isdir(match)
            reason = ignored_name(name, is_folder=is_folder)
            if reason and not name.startswith("."):  # only a glob that asks for hidden files matches them
                self.ignore(match, reason)
            elif self.is_excluded(match, root, is_folder=is_folder):
                continue
            elif is_folder:
                self.walk(match, root)
            elif is_being_downloaded(match, os.path.lexists):
                self.ignore(match, INCOMPLETE)
            else:
                self.add_found(match, root)
        for folder, error in unreadable_folders(path):
            if self.patterns.exclusion(folder, root, is_folder=True) is None:
                self.report(folder, error)
        if not found and not self.searches[-1].n_problems:
            self.problems[path] = "no file matches"

    def report_searches_without_media(self) -> None:
        """Add a problem for each search that found nothing, unless earlier ones had found its media already."""
        paths = [item.path for item in self.items]
        for search in self.searches:
            if search.n_items or search.n_problems or search.path in self.problems:
                continue
            if any(_contains(paths, path) for path in search.scanned_before):
                continue
            if search.n_excluded:
                self.all_excluded.append(PathProblem(search.path, "everything is excluded"))
            else:
                self.problems[search.path] = "contains no media"

    def walk(self, folder: str, root: str) -> None:
        """Search a folder. Links come last, so that a link to a file that is found as well is ignored."""
        pending, links = [folder], list[str]()
        while pending or links:
            here = pending.pop() if pending else links.pop(0)
            if os.path.islink(here) and not os.path.isdir(here):
                self.add_found(here, root)
                continue
            entries = self.list_folder(here)
            names = {entry.name for entry in entries}
            for entry in entries:
                is_folder, is_link = _kind(entry)
                if reason := ignored_name(entry.name, is_folder=is_folder):
                    self.ignore(entry.path, reason)
                elif self.is_excluded(entry.path, root, is_folder=is_folder):
                    continue
                elif not is_folder and is_being_downloaded(entry.name, names.__contains__):
                    self.ignore(entry.path, INCOMPLETE)
                elif is_link:
                    links.append(entry.path)
                elif is_folder:
                    pending.append(entry.path)
                else:
                    self.add_found(entry.path, root)

    def list_folder(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            if not self.is_new(os.stat(folder), folder, folder=True):
                return []
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            self.report(folder, error)
            return []

    def is_new(self, found: os.stat_result, path: str, *, folder: bool = False) -> bool:
        # Some network file systems have no inode numbers; use the resolved path there.
        key = (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)
        seen = self.folders_seen if folder else self.files_seen
        if key not in seen:
            seen[key] = path
            return True
        self.ignore(path, "folder already scanned" if folder else "file already scanned")
        if self.searches:
            self.searches[-1].scanned_before.append(seen[key])
        return False

    def add_found(self, path: str, root: str) -> None:
        """Add a file found by a search: as an item if it is media or claims to be, otherwise as an ignored path."""
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                self.ignore(path, "not a regular file")
            elif self.is_new(found, path):
                item = MediaItem(path, root, os.path.relpath(path, root), found.st_size, found.st_mtime_ns)
                self.add_item(item, *ignore_reason(path))
        except (FileNotFoundError, NotADirectoryError):
            self.ignore(path, "broken link" if os.path.islink(path) else "removed during the scan")
        except (OSError, MediaError) as error:
            self.report(path, error)

    def add_item(self, item: MediaItem, reason: str, is_sure: bool) -> None:
        """Add a file, unless it is ignored for a reason or has to be opened first; see `ignore_reason`."""
        if not is_sure:
            self.ambiguous[item.path] = item, reason, self.searches[-1]
        elif reason:
            self.ignore(item.path, reason)
        else:
            self.items.append(item)
            self.searches[-1].n_items += 1

    def probe_ambiguous(self) -> None:
        """Open the files whose first bytes were inconclusive."""
        if not self.ambiguous:
            return
        from vidqa.media import probe  # imported here because most scans need no decoder
        from vidqa.media.workers.decode_pool import DecodePool

        with DecodePool(_N_PROBE_WORKERS, _PROBE_TIMEOUT_S) as pool:
            for path, has_video in pool.map_unordered(probe.has_video_stream, self.ambiguous):
                item, reason, search = self.ambiguous[path]
                if isinstance(has_video, MediaError):
                    self.ignore(path, f"{has_video.kind} when probed")
                elif has_video:
                    self.items.append(item)
                    search.n_items += 1
                else:
                    self.ignore(path, reason)


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Return whether an entry is a folder or a link to one, and whether it is a link."""
    is_link = False
    with suppress(OSError):  # a loop of links, or no permission for the target: reported when the entry is opened
        is_link = entry.is_symlink()
        return entry.is_dir(), is_link
    return False, is_link


def _contains(paths: Sequence[str], path: str) -> bool:
    """Return whether `path`, or a file below it, is one of the sorted paths."""
    for start in (path, os.path.join(path, "")):
        i = bisect_left(paths, os.fsencode(start), key=os.fsencode)
        if i < len(paths) and (paths[i] == path or paths[i].startswith(os.path.join(path, ""))):
            return True
    return False
