"""Names of files and folders that a search ignores: hidden, of the system, temporary, or not complete yet.

The first bytes of such a file may be those of a video, as in a partial download or an editor's backup copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable

HIDDEN = "hidden or system"
INCOMPLETE = "incomplete download"
TEMPORARY = "temporary or backup file"

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
# Browsers, download managers, torrent clients (`.!qB`), rclone and WinSCP append these; yt-dlp appends `.part-Frag7`.
# `.icloud`, `.nextcloud` and `.owncloud` stand for a file that is only on a server.
_INCOMPLETE = re.compile(
    r".+\.(part|partial|crdownload|download|opdownload|fdmdownload|filepart|dltemp|dctmp|aria2|ytdl|xltd|jc!|bc!|![a-z]+"
    r"|part-frag\d+|lftp-pget-status|icloud|nextcloud|owncloud)"
)
# Backup copies and swap files of editors, lock and temporary files of Office and Emacs.
_TEMPORARY = re.compile(r".+(~|\.(tmp|temp|sw[op]))|~\$.*|#.+#")
#: A downloader that writes the file `x.mp4` under its final name keeps `x.mp4.aria2` (or one of these) next to it until
#: it is complete.
_CONTROL_SUFFIXES = (".aria2", ".ytdl", ".lftp-pget-status", ".st")


def ignored_name(name: str, *, is_folder: bool = False) -> str | None:
    """Return why a file or folder found by a search is ignored, if its name is reason enough.

    Args:
        name: without its folder.
        is_folder: Safari downloads into a folder `x.mp4.download`; the other rules for suffixes are for files.
    """
    lower = name.lower()
    if name.startswith(".") or lower in (_SYSTEM_FOLDERS if is_folder else _SYSTEM_FILES):
        return HIDDEN
    if is_folder:
        return INCOMPLETE if lower.endswith(".download") else None
    if _INCOMPLETE.fullmatch(lower):
        return INCOMPLETE
    return TEMPORARY if _TEMPORARY.fullmatch(lower) else None


def is_being_downloaded(path: str, exists: Callable[[str], bool]) -> bool:
    """Return whether a downloader has marked a file as incomplete by a control file next to it.

    Args:
        path: path or name of the file.
        exists: returns whether there is a file at such a path or of such a name.
    """
    return any(exists(path + suffix) for suffix in _CONTROL_SUFFIXES)
