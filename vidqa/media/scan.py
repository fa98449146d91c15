"""Paths, folders and globs -> media items, sorted, each real file once. Decides by content; does not decode.

The first bytes settle nearly every file. A container is opened only where they cannot tell: an unknown binary, or a
container that may hold pictures under a suffix that says sound. That happens in processes of their own, for what is in
such a file may kill or hang FFmpeg.
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
#: Containers that hold sound only as often as pictures: the suffix decides whether they are looked into.
_AMBIGUOUS = frozenset({"isobmff", "matroska", "asf", "rm"})
#: Opening containers: seconds for one, and processes side by side.
_LOOK_S = 60.0
_LOOKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class ExcludedFile:
    """Something that was found and gets no row."""

    path: str
    reason: str


@dataclass(frozen=True)
class ScanResult:
    """What a scan found: every file and folder met is in one of the two lists."""

    items: tuple[MediaItem, ...]  # sorted by the bytes of the path
    ignored: tuple[ExcludedFile, ...]  # sorted by the bytes of the path

    def counts(self) -> dict[str, int]:
        """Number of things left out by reason, most frequent first."""
        return dict(Counter(out.reason for out in self.ignored).most_common())


def scan(paths: Sequence[str]) -> ScanResult:
    """Find media.

    A file that is named gets its item whatever it holds, even if it does not exist. A folder is searched with all below
    it; a glob that is no existing name stands for what it matches, under the rules for folders.

    Args:
        paths: files, folders and globs, relative to the working folder or absolute.

    Returns:
        Items sorted, each real file once (a named one wins, then a plain name over a link, then the first met), and
        what was left out with its reason.

    Raises:
        UsageError: no path at all, or an empty one.
    """
    if not paths or not all(map(os.fspath, paths)):  # empty: a variable of a script that was not set
        raise UsageError("a path is missing" if not paths else "one of the paths is empty", hint="a file or folder")
    state = _Scan()
    named: list[str] = []
    searched: list[str] = []
    for path in paths:
        (searched if _is_search(path) else named).append(path)
    for path in sorted(named, key=os.fsencode):
        state.add_named(os.path.abspath(path))
    for path in searched:
        state.search(path)
    state.look_into_doubtful()
    return state.result()


def _is_search(path: str) -> bool:
    return os.path.isdir(path) or is_glob(path)


def is_glob(path: str) -> bool:
    """Whether a path of the user stands for what it matches: a name that exists stands for itself."""
    return not os.path.lexists(path) and glob.has_magic(path)


@dataclass
class _Scan:
    items: list[MediaItem] = field(default_factory=list)
    ignored: list[ExcludedFile] = field(default_factory=list)
    doubtful: dict[str, tuple[MediaItem, str]] = field(default_factory=dict)  # with the reason if there is no video
    files_seen: set[tuple[int, int] | str] = field(default_factory=set)
    folders_seen: set[tuple[int, int] | str] = field(default_factory=set)

    def result(self) -> ScanResult:
        return ScanResult(
            tuple(sorted(self.items, key=lambda item: os.fsencode(item.path))),
            tuple(sorted(self.ignored, key=lambda out: (os.fsencode(out.path), out.reason))),
        )

    def leave(self, path: str, reason: str) -> None:
        self.ignored.append(ExcludedFile(path, reason))

    def add_named(self, path: str) -> None:
        root, name = os.path.dirname(path), os.path.basename(path) or path
        try:
            found = os.stat(path)
        except (OSError, ValueError):  # missing or not reachable: the row will say so
            self.items.append(MediaItem(path, root, name, 0, 0, named=True))
            return
        if self.first_time(found, path):
            self.items.append(MediaItem(path, root, name, found.st_size, found.st_mtime_ns, named=True))

    def search(self, path: str) -> None:
        if os.path.isdir(path):
            self.walk(os.path.abspath(path), os.path.abspath(path))
            return
        root = os.path.abspath(glob_root(path))
        matches = sorted(glob.glob(path, recursive=True), key=os.fsencode)
        if not matches:
            self.leave(path, "no file matches")
        for match in map(os.path.abspath, matches):
            if os.path.isdir(match):
                self.walk(match, root)
            else:
                self.meet(match, root)

    def walk(self, folder: str, root: str) -> None:
        """Plain files before links, so that a link to a file in the tree is the one that is left out."""
        pending, links = [folder], list[str]()
        while pending or links:
            here = pending.pop() if pending else links.pop(0)
            if os.path.islink(here) and not os.path.isdir(here):
                self.meet(here, root)
                continue
            for entry in self.list_folder(here):
                if _is_hidden(entry.name, entry.is_dir()):
                    self.leave(entry.path, "hidden or system")
                elif entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    pending.append(entry.path)
                else:
                    self.meet(entry.path, root)

    def list_folder(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            if not self.first_time(os.stat(folder), folder, folder=True):
                return
            with os.scandir(folder) as entries:
                yield from sorted(entries, key=lambda e: os.fsencode(e.name))
        except OSError:
            self.leave(folder, "folder cannot be read")

    def first_time(self, found: os.stat_result, path: str, *, folder: bool = False) -> bool:
        # Some network file systems have no inode numbers; there the resolved path has to do.
        key = (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)
        seen = self.folders_seen if folder else self.files_seen
        if key in seen:
            self.leave(path, "same folder again" if folder else "same file again")
            return False
        seen.add(key)
        return True

    def meet(self, path: str, root: str) -> None:
        """A file found in a search: an item if it is media or claims to be, else left out with its reason."""
        try:
            found = os.stat(path)
        except OSError:
            self.leave(path, "broken link" if os.path.islink(path) else "cannot be read")
            return
        if not stat.S_ISREG(found.st_mode):
            self.leave(path, "not a regular file")
        elif self.first_time(found, path):
            item = MediaItem(path, root, os.path.relpath(path, root), found.st_size, found.st_mtime_ns)
            reason, sure = ignore_reason(path)
            if not sure:
                self.doubtful[path] = item, reason
            elif reason:
                self.leave(path, reason)
            else:
                self.items.append(item)

    def look_into_doubtful(self) -> None:
        """Open the containers whose first bytes did not tell enough."""
        if not self.doubtful:
            return
        from vidqa.media import probe  # only here: most scans never need a decoder
        from vidqa.media.workers.decode_pool import DecodePool

        with DecodePool(_LOOKERS, _LOOK_S) as pool:
            for path, has_video_stream in pool.map_unordered(probe.has_video_stream, self.doubtful):
                item, reason = self.doubtful[path]
                if isinstance(has_video_stream, MediaError):
                    self.leave(path, f"{has_video_stream.kind} when looked into")
                elif has_video_stream:
                    self.items.append(item)
                else:
                    self.leave(path, reason)


def ignore_reason(path: str) -> tuple[str, bool]:
    """Why a file found in a folder gets no row, by its name and its first bytes.

    Args:
        path: of a regular file.

    Returns:
        The reason, empty where it is media or claims to be; and False where only opening it tells whether it holds a
        video after all.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in MEDIA_SUFFIXES:
        return "", True  # media, or a row that says why not
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
    """The folder of a glob above its first wildcard."""
    folder = pattern
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir
