"""Path -> first bytes and plain facts of the file. Does not know containers or decoders.

A path is opened as bytes from the file system and never as an address: names such as `concat:a|b` stay names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.sniff import SNIFF_BYTES, Signature, sniff

#: What a caller may name files, folders and globs by.
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
#: A claim to be media, by name. Only decides whether a file that is not media gets a row saying so, or is left out.
_MEDIA = (
    "3g2 3gp amv apng asf avi avif avifs bmp divx dv f4v flv gif h264 h265 heic heics heif heifs hevc ivf jfif jp2 "
    "jpe jpeg jpg m1v m2ts m2v m4v mjpeg mjpg mk3d mkv mov mp4 mpe mpeg mpg mpv mts mxf nut ogm ogv png qt rm rmvb tif "
    "tiff vob webm webp wmv y4m"
)
#: A claim to be sound. A container with this suffix is opened to see whether it holds a picture all the same.
_AUDIO = "aac ac3 aif aiff amr ape dts eac3 flac m4a m4b m4p mka mp2 mp3 mpga oga ogg opus ra spx wav wma wv"
MEDIA_SUFFIXES = frozenset(f".{name}" for name in _MEDIA.split())
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _AUDIO.split())


def as_path_list(paths: Paths) -> list[str]:
    """One path, or several in any form that a caller may give them, as a list."""
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def read_head(path: str) -> bytes:
    """First bytes of a regular file. Never blocks on a pipe or a device: those are not opened.

    Raises:
        MediaError: missing, permission, not_media (not a regular file), unreadable.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MediaError("not_media", f"{display_path(path)}: not a regular file")
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as e:
        raise file_error(path, e) from e
    try:
        return os.read(fd, SNIFF_BYTES)
    except OSError as e:
        raise file_error(path, e) from e
    finally:
        os.close(fd)


def identify(path: str) -> Signature:
    """Signature of a file that may hold pictures.

    Raises:
        MediaError: as `read_head`, and empty_file, not_local, not_media, no_video where the first bytes settle it.
    """
    signature = sniff(read_head(path))
    name, container = display_path(path), signature.container
    if signature.family == "empty":
        raise MediaError("empty_file", f"{name}: the file has no bytes")
    if signature.family == "playlist":
        raise MediaError(
            "not_local", f"{name}: a playlist or script that names other files or addresses; it is not opened"
        )
    if signature.family in ("text", "subtitles", "other"):
        raise MediaError("not_media", f"{name}: not a picture or a video but {signature.family} ({container})")
    return signature


def file_error(path: str, error: OSError | ValueError) -> MediaError:
    """What the operating system said, as a row can carry it."""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return MediaError("missing", f"{display_path(path)}: no such file")
    if isinstance(error, PermissionError):
        return MediaError("permission", f"{display_path(path)}: {reason}", hint="run as a user who may read the file")
    return MediaError("unreadable", f"{display_path(path)}: {reason}")


@contextmanager
def native_path(path: str) -> Iterator[str]:
    """A name for the same file that C libraries can take: UTF-8, absolute, no suffix that could sway a format guess.

    Where the system offers it, the file is opened here and handed on as /dev/fd/N, which also settles undecodable
    bytes.
    """
    if not os.path.isdir("/dev/fd"):
        yield os.path.abspath(path)
        return
    try:
        fd = os.open(path, os.O_RDONLY)
    except (OSError, ValueError) as e:
        raise file_error(path, e) from e
    try:
        yield f"/dev/fd/{fd}"
    finally:
        os.close(fd)
