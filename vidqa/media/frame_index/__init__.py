"""Frame index: which frame of a video is shown when.

In: an open container. Out: `FrameIndex` with the pts of all frames, found without decoding where possible.

frame_index.py      the index itself
from_container.py   from the sample table of MP4 and MOV
from_packets.py     from the packets of any container
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.media.frame_index.frame_index import FrameIndex

__all__ = ["FrameIndex"]

_MODULES = {"FrameIndex": "frame_index"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
