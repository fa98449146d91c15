"""`FrameIndex`: which frame of a video is shown when.

A tick is one unit of the stream's time base. Frame i is the i-th frame in display order.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
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
        """Presentation timestamps in seconds from the first frame, float64 [N]."""
        return (self.pts - self.pts[0]).astype(np.float64) * float(self.time_base)

    @property
    def rate(self) -> float | None:
        """Average frame rate in frames per second; None for a single frame."""
        span = int(self.pts[-1] - self.pts[0])
        return float((len(self.pts) - 1) / (span * self.time_base)) if span > 0 else None

    @property
    def duration_s(self) -> float:
        """Seconds from the start of the first frame to the end of the last."""
        shown = (int(self.pts[-1] - self.pts[0]) + self.last_duration) * self.time_base
        return float(shown) + (1.0 / self.rate if self.rate and not self.last_duration else 0.0)


def index_from_decoding(pts: list[int | None], time_base: Fraction, rate: Fraction | None) -> FrameIndex:
    """Build the index of a stream that was decoded completely.

    Args:
        pts: pts of the decoded frames in ticks, in the order of the decoder; None where the decoder has none.
        time_base: seconds per tick.
        rate: frame rate from the header in frames per second, for streams without usable pts; None means 25.
    """
    times = [p for p in pts if p is not None]
    if len(times) == len(pts) and all(a < b for a, b in pairwise(times)):
        ticks, base = np.asarray(times, np.int64), time_base
    else:
        ticks, base = np.arange(len(pts), dtype=np.int64), 1 / (rate or DEFAULT_RATE)
    return FrameIndex(pts=ticks, keys=ticks[:1], time_base=base, by_order=True)
