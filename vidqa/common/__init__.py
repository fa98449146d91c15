"""Helpers that every layer may use. Nothing here imports another part of vidqa except `errors`.

atomic_io.py      files and folders that appear under their name only when they are complete
file_lock.py      one process at a time may write a table or a model
devices.py        CPU threads, CUDA devices, free memory, out-of-memory errors
extras.py         packages that only some features need, and how to install them
disk_space.py     free bytes of a disk, disk-full errors
lazy_exports.py   exports of a package, imported on first use
lossy_stream.py   messages that may be lost
display.py        paths, sizes and durations as text for people
text_layout.py    text in aligned columns of a terminal
file_identity.py  whether two paths lead to the same file
foreign_files.py  files of other programs: placeholders, JSON settings with checked types
output_paths.py   the folder of an output must exist
path_text.py      file names of arbitrary bytes as text that a table can hold
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["FileLock", "atomic_write", "display_path", "human_bytes", "human_duration"]

__getattr__ = lazy_exports(
    __name__,
    {
        "FileLock": "file_lock",
        "atomic_write": "atomic_io",
        "display_path": "display",
        "human_bytes": "display",
        "human_duration": "display",
    },
)
