"""`FrameIndex`: which frame of a video is shown when.

A tick is one unit of the stream's time base. Frame i is the i-th frame in display order.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

#: Where the index of a video comes from, fastest first. Each one is slower and more reliable than the one before.
IndexSource = Literal["container", "packets", "decoding"]
#: Frame rate that is assumed for streams without one, in frames per second.
DEFAULT_RATE = Fraction(25)


class IndexMismatchError(Exception):
    """The decoder does not return a frame that the index contains: use the next `IndexSource`."""


@dataclass(frozen=True)
class FrameIndex:
    """The pts of every frame of a stream.

    If `by_order` is True, frames cannot be addressed by pts (raw streams, H.264 in AVI). They are then found by
    counting decoded frames, from the start of the file or of their GOP.
    """

    pts: np.ndarray  # int64 [N], ticks, ascending: pts of frame i
    keys: np.ndarray  # int64 [K], ticks, ascending: pts of the keyframes
    time_base: Fraction  # seconds per tick
    last_duration: int = 0  # duration of the last frame in ticks; 0 if unknown
    key_seeks: np.ndarray | None = None  # int64 [K], ticks: seek target of each keyframe; None means `keys`
    sizes: np.ndarray | None = None  # int64 [N], packet sizes in bytes
    by_order: bool = False
    gop_starts: np.ndarray | None = None  # int64 [G], number of the first frame of each GOP; only if `by_order`
    one_packet_one_frame: bool = True  # False for field pairs: a packet may contain half a frame
    open_gops: bool = False  # True if frames stored after a keyframe are shown before it
    unverified: bool = False  # True if a missing frame means that the index is wrong, not that the file is damaged
    needs_check: bool = False  # True if the first decoded frames have to be compared with the index
    numbers: np.ndarray | None = None  # int64 [N], number of frame i in the stream; None means i. Only if `by_order`
    packets: FrameIndex | None = None  # index of the packets of a decoded stream: has its rate and duration
    unreadable_s: float = 0.0  # duration of the frames that are damaged and therefore not in the index
    jump_s: float = 0.0  # largest jump of the clock in seconds, forward or backward

    def contradicts(self, packet: Any) -> bool:
        """Return whether a packet has the pts of another packet, judged by its size.

        After a seek in an MPEG program stream, FFmpeg estimates timestamps again and may be off by a frame.
        """
        if self.sizes is None or packet.pts is None or not packet.size:
            return False
        i = int(np.searchsorted(self.pts, packet.pts))
        return i < len(self.pts) and self.pts[i] == packet.pts and self.sizes[i] != packet.size

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def pts_s(self) -> np.ndarray:
        """Presentation timestamps in seconds from the first frame, or from the first packet; float64 [N]."""
        first = (self.packets or self).pts[0]
        return (self.pts - first).astype(np.float64) * float(self.time_base)

    @property
    def rate(self) -> float | None:
        """Average frame rate in frames per second; None for a single frame."""
        if self.packets is not None:
            return self.packets.rate
        span = int(self.pts[-1] - self.pts[0])
        return float((len(self.pts) - 1) / (span * self.time_base)) if span > 0 else None

    @property
    def duration_s(self) -> float:
        """Seconds from the start of the first frame to the end of the last.

        If the duration of the last frame is unknown, it is that of an ordinary frame.
        """
        if self.packets is not None:
            return self.packets.duration_s
        last_s = float(self.last_duration * self.time_base) or self.frame_s
        return float(int(self.pts[-1] - self.pts[0]) * self.time_base) + last_s

    @property
    def frame_s(self) -> float:
        """Duration of an ordinary frame in seconds; 0 for a single frame."""
        return float(np.median(np.diff(self.pts)) * float(self.time_base)) if len(self) > 1 else 0.0
