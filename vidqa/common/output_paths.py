"""The folder of an output must exist: creating it might write to the disk below an unmounted one."""

from __future__ import annotations

import os
from pathlib import Path

from vidqa.common.display import display_path
from vidqa.errors import UsageError


def check_output_parent(path: str | os.PathLike[str], option: str = "--out") -> None:
    """Check, before any work starts, that the folder in which an output is created exists.

    Args:
        path: the file or folder to be written; symbolic links are followed.
        option: that names it, for the message; empty if it is an argument.

    Raises:
        UsageError: the folder above `path` does not exist, or is a file.
    """
    parent = Path(os.path.realpath(path)).parent
    if parent.is_dir():
        return
    output, folder = display_path(os.fspath(path)), display_path(str(parent))
    output = f"{option} {output}" if option else output
    if parent.exists():
        raise UsageError(f"{output}: {folder} is not a folder")
    raise UsageError(f"{output}: the folder {folder} does not exist", hint=f"mkdir -p {folder}")
