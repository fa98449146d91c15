"""Access to media files by path: their first bytes, what these reveal, and errors for files that cannot be read.

A path is never interpreted as a URL: a file may be called `concat:a|b`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.image_formats.jpeg import JPEG_SEQUENCE_BYTES, is_jpeg_sequence
from vidqa.media.sniff import SNIFF_BYTES, Signature, sniff
from vidqa.records import type_name

#: Files, folders and globs as callers pass them.
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
#: Suffixes that claim video or image content. A file with such a name gets a row even if it is something else.
_MEDIA = (
    "3g2 3gp amv apng asf avi avif avifs bmp divx dv f4v flv gif h264 h265 heic heics heif heifs hevc ivf jfif jp2 "
    "jpe jpeg jpg m1v m2ts m2v m4v mjpeg mjpg mk3d mkv mov mp4 mpe mpeg mpg mpv mts mxf nut ogm ogv png qt rm rmvb tif "
    "tiff vob webm webp wmv y4m"
)
#: Suffixes that claim audio. A container with such a name is opened to check whether it has a video stream.
_AUDIO = "aac ac3 aif aiff amr ape dts eac3 flac m4a m4b m4p mka mp2 mp3 mpga oga ogg opus ra spx wav wma wv"
MEDIA_SUFFIXES = frozenset(f".{name}" for name in _MEDIA.split())
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _AUDIO.split())
#: Containers that often contain audio only: with an audio suffix, they are opened to check for a video stream.
_AMBIGUOUS = frozenset({"isobmff", "matroska", "asf", "rm"})


def as_path_list(paths: Paths, name: str = "paths") -> list[str]:
    """Return one path, or several in any accepted form, as a list of strings.

    Args:
        paths: the paths.
        name: of the argument, for the error.

    Raises:
        TypeError: something is not a path.
    """
    several = [paths] if isinstance(paths, str | bytes | os.PathLike) or not isinstance(paths, Iterable) else paths
    found = []
    for path in several:
        if not isinstance(path, str | os.PathLike) or not isinstance(text := os.fspath(path), str):
            raise TypeError(f"{name} must be a path or several (str or Path), not {type_name(path)}")
        found.append(text)
    return found


def read_head(path: str, n_bytes: int = SNIFF_BYTES) -> bytes:
    """Read the first bytes of a regular file. Pipes and devices are not opened, so this never blocks.

    Args:
        path: path of the file.
        n_bytes: maximum number of bytes.

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
        with open(fd, "rb") as f:
            return f.read(n_bytes)
    except OSError as e:
        raise file_error(path, e) from e


def identify(path: str) -> Signature:
    """Determine the signature of a file, and reject files that cannot contain video or an image.

    Args:
        path: path of the file.

    Raises:
        MediaError: as `read_head`; empty_file, not_local or not_media if the first bytes are conclusive.
    """
    signature = sniff(read_head(path))
    if signature.container == "jpeg" and is_jpeg_sequence(read_head(path, JPEG_SEQUENCE_BYTES)):
        return Signature("video", "mjpeg")
    name, container = display_path(path), signature.container
    if signature.family == "empty":
        raise MediaError("empty_file", f"{name}: the file is empty")
    if signature.family == "playlist":
        raise MediaError("not_local", f"{name}: a playlist or script that refers to other files or URLs; not opened")
    if signature.family in ("text", "subtitles", "other"):
        raise MediaError("not_media", f"{name}: not an image or video but {signature.family} ({container})")
    return signature


def ignore_reason(path: str) -> tuple[str, bool]:
    """Decide by suffix and first bytes whether a file found in a folder is ignored.

    Args:
        path: path of a regular file.

    Returns:
        The reason to ignore it, empty if it is media or claims to be; and False if the file has to be opened to find
        out whether it contains video after all.

    Raises:
        MediaError: its first bytes cannot be read.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in MEDIA_SUFFIXES:
        return "", True  # if it is not media, it gets a failed row
    signature = sniff(read_head(path))
    if signature.family == "image":
        return "", True
    if signature.family == "video" and not (suffix in AUDIO_SUFFIXES and signature.container in _AMBIGUOUS):
        return "", True
    if signature.family in ("video", "unknown"):
        return "audio" if suffix in AUDIO_SUFFIXES else "not media", False
    return signature.family if signature.family != "other" else "not media", True


def file_error(path: str, error: OSError | ValueError) -> MediaError:
    """Convert an error of the operating system to a MediaError."""
    # Python's message about a NUL character depends on its version.
    reason = "the name contains a NUL character" if "\0" in path else getattr(error, "strerror", None) or str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        what = "a symbolic link to a file that does not exist" if os.path.islink(path) else "no such file or folder"
        return MediaError("missing", f"{display_path(path)}: {what}")
    if isinstance(error, PermissionError):
        return MediaError("permission", f"{display_path(path)}: {reason}", hint="run as a user who may read the file")
    return MediaError("unreadable", f"{display_path(path)}: {reason}")


@contextmanager
def native_path(path: str) -> Iterator[str]:
    """Yield a name by which C libraries can open the file.

    Where the system has /dev/fd, the file is opened here and passed as /dev/fd/N, which also works for undecodable
    names and has no suffix that could affect format detection. Elsewhere it is the absolute path.

    Args:
        path: path of the file.

    Raises:
        MediaError: missing, permission, unreadable.
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
