"""Names in records -> paths of media files in one folder and its subfolders."""

from __future__ import annotations

import os
from pathlib import Path

from vidqa.media.files import MEDIA_SUFFIXES
from vidqa.training.data.sample import SampleError

#: Tried first, in this order; then all other suffixes of media files.
_COMMON_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_IMAGE_SUFFIXES = "apng avif avifs bmp gif heic heics heif heifs jfif jp2 jpe jpeg jpg png tif tiff webp"
_VIDEO_SUFFIXES = MEDIA_SUFFIXES - {f".{name}" for name in _IMAGE_SUFFIXES.split()}


class MediaFolder:
    """Media files in one folder and its subfolders.

    Args:
        root: the folder; names in records are relative to it, unless they are absolute.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)
        self._by_stem: dict[str, str] | None = None

    def file(self, *names: str) -> str:
        """Return the absolute path of the first name that is a file.

        Raises:
            SampleError: media_missing; the message has all names that were tried.
        """
        for name in names:
            path = os.path.normpath(os.path.join(self.root, name))
            if os.path.isfile(path):
                return path
        also = f" (nor as {', '.join(names[1:])})" if len(names) > 1 else ""
        raise SampleError("media_missing", f"{os.path.join(self.root, names[0])}: no such file{also}")

    def by_id(self, video_id: str) -> str:
        """Find the video named `video_id` with any suffix, in the folder or a subfolder.

        The prefix `v_` of ActivityNet is optional in both names.

        Raises:
            SampleError: media_missing.
        """
        names = dict.fromkeys((video_id, f"v_{video_id}", video_id.removeprefix("v_")))
        for name in names:
            for suffix in _COMMON_SUFFIXES:
                path = os.path.join(self.root, name + suffix)
                if os.path.isfile(path):
                    return path
        if self._by_stem is None:
            self._by_stem = self._list()
        for name in names:
            if name in self._by_stem:
                return self._by_stem[name]
        raise SampleError("media_missing", f"no video named {video_id} (any suffix) in {self.root} or its subfolders")

    def _list(self) -> dict[str, str]:
        """Return the path of each video by its stem; if several share a stem, the choice is deterministic."""
        found: dict[str, str] = {}
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            for name in sorted(files, key=_preference):
                path = Path(folder, name)
                if path.suffix.lower() in _VIDEO_SUFFIXES:
                    found.setdefault(path.stem, str(path))
        return found


def _preference(name: str) -> tuple[int, str]:
    suffix = os.path.splitext(name)[1].lower()
    return (_COMMON_SUFFIXES.index(suffix) if suffix in _COMMON_SUFFIXES else len(_COMMON_SUFFIXES)), name
