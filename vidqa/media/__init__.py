"""Media files -> decoded frames.

In: paths, folders, globs. Out: `MediaItem`s (scan), `MediaFacts` (probe), frames of each segment (decode).

scan.py, files.py, sniff.py           find media files by content
container.py, frame_index/, probe.py  open a video; its facts and the pts of its frames
segments.py, frame_sampling.py        choose the frames to decode
decode.py, backends/, pixels.py       decode them
workers/                              decode in separate processes, with time and memory limits
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "DecodeJob": "vidqa.media.workers.decode_pool",
    "DecodePool": "vidqa.media.workers.decode_pool",
    "ScanResult": "vidqa.media.scan",
    "open_reader": "vidqa.media.decode",
}
__all__ = ["DecodeJob", "DecodePool", "ScanResult", "open_reader"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
