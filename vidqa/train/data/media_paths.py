"""Names in records -> media files below one folder. Does not open them."""

from __future__ import annotations

import os
from pathlib import Path

from vidqa.media.files import MEDIA_SUFFIXES
from vidqa.train.data.sample import SampleError

#: Tried first, in this order; then whatever else is media by its suffix.
_USUAL = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_STILL_NAMES = "apng avif avifs bmp gif heic heics heif heifs jfif jp2 jpe jpeg jpg png tif tiff webp"
_CLIPS = MEDIA_SUFFIXES - {f".{name}" for name in _STILL_NAMES.split()}


class MediaFolder:
    """Media below one folder.

    Args:
        root: the folder; names in records are relative to it (an absolute name stays what it is).
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)
        self._by_stem: dict[str, str] | None = None

    def file(self, *names: str) -> str:
        """The first of the names that is a file, as an absolute path.

        Raises:
            SampleError: media_missing; says what was looked for.
        """
        for name in names:
            path = os.path.normpath(os.path.join(self.root, name))
            if os.path.isfile(path):
                return path
        also = f" (nor as {', '.join(names[1:])})" if len(names) > 1 else ""
        raise SampleError("media_missing", f"{os.path.join(self.root, names[0])}: no such file{also}")

    def by_id(self, video_id: str) -> str:
        """The clip called `video_id` and any suffix, in the folder or deeper. ActivityNet's `v_` may be there or not.

        Raises:
            SampleError: media_missing.
        """
        names = dict.fromkeys((video_id, f"v_{video_id}", video_id.removeprefix("v_")))
        for name in names:
            for suffix in _USUAL:
                path = os.path.join(self.root, name + suffix)
                if os.path.isfile(path):
                    return path
        if self._by_stem is None:
            self._by_stem = self._list()
        for name in names:
            if name in self._by_stem:
                return self._by_stem[name]
        raise SampleError("media_missing", f"no clip named {video_id} (any suffix) below {self.root}")

    def _list(self) -> dict[str, str]:
        """Name without suffix -> path, of every clip below the folder; the same one on every run."""
        found: dict[str, str] = {}
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            for name in sorted(files, key=_preference):
                path = Path(folder, name)
                if path.suffix.lower() in _CLIPS:
                    found.setdefault(path.stem, str(path))
        return found


def _preference(name: str) -> tuple[int, str]:
    suffix = os.path.splitext(name)[1].lower()
    return (_USUAL.index(suffix) if suffix in _USUAL else len(_USUAL)), name
