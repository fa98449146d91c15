"""Frame index: which frame of a video is shown when.

In: an open container. Out: `FrameIndex` with the pts of all frames, found without decoding where possible.

frame_index.py      the index itself
from_container.py   from the sample table of MP4 and MOV
from_packets.py     from the packets of any container; holes.py finds packets that were never written
from_decoding.py    from the decoded frames, for streams that nothing else describes
clock.py            times of streams whose clock jumps
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.media.frame_index.frame_index import FrameIndex

__all__ = ["FrameIndex"]

__getattr__ = lazy_exports(__name__, {"FrameIndex": "frame_index"})
