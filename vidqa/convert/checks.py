"""One file of a checkpoint is what its name says: there, whole enough to begin with, and itself.

Knows what stands in a file's place when a download or a clone was not finished. Does not know weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vidqa.errors import BundleError

#: What to do about a file that cannot be what it was published as.
AGAIN = "fetch the file again: what is here may be a part of it, or a page that a server gave in its place"
#: What a clone of a repository holds in place of a large file until it is fetched.
_LFS_POINTER = b"version https://git-lfs.github.com/"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BundleError: it cannot be read, or is something else.
    """
    try:
        refuse_pointer(path)
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(f"{path} cannot be read: {e}") from e
    if not isinstance(data, dict):
        raise BundleError(f"{path}: must hold an object, got {type(data).__name__}")
    return data


def refuse_pointer(path: Path) -> bytes:
    """The first bytes of a file, which must be the file itself.

    Raises:
        BundleError: it is empty, or only names a file that Git LFS has not fetched.
        OSError: it cannot be opened.
    """
    with path.open("rb") as f:
        start = f.read(len(_LFS_POINTER))
    if not start:
        raise BundleError(f"{path}: an empty file", hint=AGAIN)
    if start == _LFS_POINTER:
        raise BundleError(f"{path}: a pointer of Git LFS, not the file that it stands for", hint="git lfs pull")
    return start
