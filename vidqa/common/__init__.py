"""Helpers that every layer may use. Nothing here imports another part of vidqa except `errors`.

atomic_io.py      files and folders that appear under their name only when they are complete
file_lock.py      one process at a time may write a table or a model
devices.py        CPU threads, CUDA devices, free memory, out-of-memory errors
disk_space.py     free bytes of a disk, disk-full errors
display.py        paths, sizes and durations as text for people
path_text.py      file names of arbitrary bytes as text that a table can hold
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "FileLock": "vidqa.common.file_lock",
    "atomic_write": "vidqa.common.atomic_io",
    "display_path": "vidqa.common.display",
    "human_bytes": "vidqa.common.display",
    "human_duration": "vidqa.common.display",
}
__all__ = ["FileLock", "atomic_write", "display_path", "human_bytes", "human_duration"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
