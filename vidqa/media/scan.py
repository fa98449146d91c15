"""Paths, folders and globs -> media items, sorted and without duplicates. Content decides, not the suffix.

The first bytes suffice for nearly every file. A container is opened only if they do not: an unknown binary, or a
container that may contain video under an audio suffix. This happens in decoder processes, because such a file may crash
or hang FFmpeg.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vidqa.errors import MediaError, UsageError
from vidqa.media.files import AUDIO_SUFFIXES, MEDIA_SUFFIXES, read_head
from vidqa.media.sniff import sniff
from vidqa.records import MediaItem

_SYSTEM_FOLDERS = frozenset(
    {
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__macosx",
        "@eadir",
        "#recycle",
        "#snapshot",
        "recycler",
    }
)
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
#: Containers that often contain audio only: with an audio suffix, they are opened to check for a video stream.
_AMBIGUOUS = frozenset({"isobmff", "matroska", "asf", "rm"})
#: For opening ambiguous files: time limit per file, and number of parallel processes.
_PROBE_TIMEOUT_S = 60.0
_N_PROBE_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class IgnoredPath:
    """A file or folder that was found but gets no row, or a glob without matches."""

    path: str
    reason: str


@dataclass(frozen=True)
class ScanResult:
    """Result of a scan. Every file that was found is in one of the two lists."""

    items: tuple[MediaItem, ...]  # sorted by the bytes of the path
    ignored: tuple[IgnoredPath, ...]  # sorted by the bytes of the path

    def counts(self) -> dict[str, int]:
        """Return the number of ignored paths by reason, most frequent first."""
        return dict(Counter(ignored.reason for ignored in self.ignored).most_common())


def scan(paths: Sequence[str]) -> ScanResult:
    """Find media files.

    A file that is named explicitly always becomes an item, even if it does not exist. Folders are searched recursively.
    A path is treated as a glob only if no file has that name; its matches follow the rules for folders.

    Args:
        paths: files, folders and globs, relative to the working directory or absolute.

    Returns:
        The items, sorted, and the ignored paths with their reasons. Of several paths to the same file, one becomes an
        item: an explicitly named path, else a regular entry rather than a link, else the first one found.

    Raises:
        UsageError: `paths` is empty or contains an empty path.
    """
    if not paths or not all(map(os.fspath, paths)):  # an empty path is usually an unset variable of a script
        what = "a path is missing" if not paths else "one of the paths is empty"
        raise UsageError(what, hint="pass a file or folder")
    state = _Scan()
    named: list[str] = []
    searched: list[str] = []
    for path in paths:
        (searched if _is_search(path) else named).append(path)
    for path in sorted(named, key=os.fsencode):
        state.add_named(os.path.abspath(path))
    for path in searched:
        state.search(path)
    state.probe_ambiguous()
    return state.result()


def _is_search(path: str) -> bool:
    return os.path.isdir(path) or is_glob(path)


def is_glob(path: str) -> bool:
    """Return whether a path is a glob. An existing file with wildcard characters in its name is not."""
    return not os.path.lexists(path) and glob.has_magic(path)


@dataclass
class _Scan:
    items: list[MediaItem] = field(default_factory=list)
    ignored: list[IgnoredPath] = field(default_factory=list)
    ambiguous: dict[str, tuple[MediaItem, str]] = field(default_factory=dict)  # with the reason if not a video
    files_seen: set[tuple[int, int] | str] = field(default_factory=set)
    folders_seen: set[tuple[int, int] | str] = field(default_factory=set)

    def result(self) -> ScanResult:
        return ScanResult(
            tuple(sorted(self.items, key=lambda item: os.fsencode(item.path))),
            tuple(sorted(self.ignored, key=lambda ignored: (os.fsencode(ignored.path), ignored.reason))),
        )

    def ignore(self, path: str, reason: str) -> None:
        self.ignored.append(IgnoredPath(path, reason))

    def add_named(self, path: str) -> None:
        root, name = os.path.dirname(path), os.path.basename(path) or path
        try:
            found = os.stat(path)
        except (OSError, ValueError):  # missing or unreachable: gets a failed row
            self.items.append(MediaItem(path, root, name, 0, 0, named=True))
            return
        if self.is_new(found, path):
            self.items.append(MediaItem(path, root, name, found.st_size, found.st_mtime_ns, named=True))

    def search(self, path: str) -> None:
        if os.path.isdir(path):
            self.walk(os.path.abspath(path), os.path.abspath(path))
            return
        root = os.path.abspath(glob_root(path))
        matches = sorted(glob.glob(path, recursive=True), key=os.fsencode)
        if not matches:
            self.ignore(path, "no file matches")
        for match in map(os.path.abspath, matches):
            if os.path.isdir(match):
                self.walk(match, root)
            else:
                self.add_found(match, root)

    def walk(self, folder: str, root: str) -> None:
        """Search a folder. Links come last, so that a link to a file that is found as well is ignored."""
        pending, links = [folder], list[str]()
        while pending or links:
            here = pending.pop() if pending else links.pop(0)
            if os.path.islink(here) and not os.path.isdir(here):
                self.add_found(here, root)
                continue
            for entry in self.list_folder(here):
                if _is_hidden(entry.name, entry.is_dir()):
                    self.ignore(entry.path, "hidden or system")
                elif entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    pending.append(entry.path)
                else:
                    self.add_found(entry.path, root)

    def list_folder(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            if not self.is_new(os.stat(folder), folder, folder=True):
                return
            with os.scandir(folder) as entries:
                yield from sorted(entries, key=lambda e: os.fsencode(e.name))
        except OSError:
            self.ignore(folder, "folder cannot be read")

    def is_new(self, found: os.stat_result, path: str, *, folder: bool = False) -> bool:
        # Some network file systems have no inode numbers; use the resolved path there.
        key = (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)
        seen = self.folders_seen if folder else self.files_seen
        if key in seen:
            self.ignore(path, "folder already scanned" if folder else "file already scanned")
            return False
        seen.add(key)
        return True

    def add_found(self, path: str, root: str) -> None:
        """Add a file found by a search: as an item if it is media or claims to be, otherwise as an ignored path."""
        try:
            found = os.stat(path)
        except OSError:
            self.ignore(path, "broken link" if os.path.islink(path) else "cannot be read")
            return
        if not stat.S_ISREG(found.st_mode):
            self.ignore(path, "not a regular file")
        elif self.is_new(found, path):
            item = MediaItem(path, root, os.path.relpath(path, root), found.st_size, found.st_mtime_ns)
            reason, sure = ignore_reason(path)
            if not sure:
                self.ambiguous[path] = item, reason
            elif reason:
                self.ignore(path, reason)
            else:
                self.items.append(item)

    def probe_ambiguous(self) -> None:
        """Open the files whose first bytes were inconclusive."""
        if not self.ambiguous:
            return
        from vidqa.media import probe  # imported here because most scans need no decoder
        from vidqa.media.workers.decode_pool import DecodePool

        with DecodePool(_N_PROBE_WORKERS, _PROBE_TIMEOUT_S) as pool:
            for path, has_video in pool.map_unordered(probe.has_video_stream, self.ambiguous):
                item, reason = self.ambiguous[path]
                if isinstance(has_video, MediaError):
                    self.ignore(path, f"{has_video.kind} when probed")
                elif has_video:
                    self.items.append(item)
                else:
                    self.ignore(path, reason)


def ignore_reason(path: str) -> tuple[str, bool]:
    """Decide by suffix and first bytes whether a file found in a folder is ignored.

    Args:
        path: path of a regular file.

    Returns:
        The reason to ignore it, empty if it is media or claims to be; and False if the file has to be opened to find
        out whether it contains video after all.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in MEDIA_SUFFIXES:
        return "", True  # if it is not media, it gets a failed row
    try:
        signature = sniff(read_head(path))
    except MediaError:
        return "cannot be read", True
    if signature.family == "image":
        return "", True
    if signature.family == "video" and not (suffix in AUDIO_SUFFIXES and signature.container in _AMBIGUOUS):
        return "", True
    if signature.family in ("video", "unknown"):
        return "audio" if suffix in AUDIO_SUFFIXES else "not media", False
    return signature.family if signature.family != "other" else "not media", True


def _is_hidden(name: str, is_folder: bool) -> bool:
    return name.startswith(".") or name.lower() in (_SYSTEM_FOLDERS if is_folder else _SYSTEM_FILES)


def glob_root(pattern: str) -> str:
    """Return the folder of a glob before its first wildcard."""
    folder = pattern
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir
