"""Packets of one stream -> which frame is shown when, without decoding. Does not know libraries: packets are only asked
for `pts`, `dts`, `duration`, `size`, `is_keyframe`, `is_discard`, `is_corrupt` and their first bytes.

Words: tick = unit of the stream's clock; frame i = the i-th picture a viewer sees.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

import numpy as np

#: What is believed about a file's frames, the fastest first; each next one is slower and surer.
Trusted = Literal["list", "packets", "decoding"]
#: Frames a second of streams that do not tell.
_USUAL_RATE = Fraction(25)
#: Bytes of the packets between two keyframes that may be held in memory.
_GROUP_LIMIT = 1 << 26


class IndexMismatchError(Exception):
    """The packets promised a frame that the decoder does not give: count by decoding instead."""


@dataclass(frozen=True)
class FrameIndex:
    """When every frame is shown.

    Where `by_order` is True the clock of the stream cannot name frames (raw streams, H.264 in AVI): frames are then
    found by counting decoded pictures, from the start or from the group that a frame is in.
    """

    pts: np.ndarray  # int64 [N], ticks, ascending: frame i begins at pts[i]
    keys: np.ndarray  # int64 [K], ticks, ascending: frames where decoding can begin
    time_base: Fraction  # seconds in a tick
    last_duration: int = 0  # ticks; 0 = not known
    key_seeks: np.ndarray | None = None  # int64 [K], ticks: where a seek to each of `keys` aims; None = at `keys`
    sizes: np.ndarray | None = None  # int64 [N], bytes of the packets
    by_order: bool = False
    group_starts: np.ndarray | None = None  # int64 [G], frames at which decoding can begin, where frames go by order
    one_packet_one_frame: bool = True  # False for field pairs: there a packet may hold half a frame
    open_groups: bool = False  # True where pictures stored after a keyframe are shown before it
    guessed: bool = False  # True where a frame that does not come at its time speaks against the index, not the file
    doubtful: bool = False  # True where a look at the first decoded frames should confirm the index

    def contradicts(self, packet: Any) -> bool:
        """True where a packet has a time that belongs to a packet of another size.

        After a seek into an MPEG program stream, times are guessed anew and may be a frame off.
        """
        if self.sizes is None or packet.pts is None or not packet.size:
            return False
        i = int(np.searchsorted(self.pts, packet.pts))
        return i < len(self.pts) and self.pts[i] == packet.pts and self.sizes[i] != packet.size

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def pts_s(self) -> np.ndarray:
        """float64 [N]: seconds from the first frame."""
        return (self.pts - self.pts[0]).astype(np.float64) * float(self.time_base)

    @property
    def rate(self) -> float | None:
        """Frames per second on average; None for a single frame."""
        span = int(self.pts[-1] - self.pts[0])
        return float((len(self.pts) - 1) / (span * self.time_base)) if span > 0 else None

    @property
    def duration_s(self) -> float:
        """Seconds from the start of the first frame to the end of the last."""
        shown = (int(self.pts[-1] - self.pts[0]) + self.last_duration) * self.time_base
        return float(shown) + (1.0 / self.rate if self.rate and not self.last_duration else 0.0)


@dataclass
class PacketIndexBuilder:
    """Collects packets in the order of the file.

    Where a seek must aim to land on a keyframe's packet (`key_seeks`): containers with a list of their keyframes find
    it by the time when it is shown. Streams without one (MPEG's) are searched for the last packet that is decoded by
    then, whichever it is: with pictures that are shown in another order, one behind the keyframe, from where decoding
    could begin at the next keyframe only.
    """

    codec: str
    time_base: Fraction
    frame_s: Fraction | None  # 1 / rate by the header; tells fields from frames
    trusted_container: bool  # the container stores one frame a packet and says when it is shown
    pts: array[int] = field(default_factory=lambda: array("q"))  # arrays: a long film has a million packets
    sizes: array[int] = field(default_factory=lambda: array("q"))
    durations: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    key_seeks: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    group_starts: array[int] = field(default_factory=lambda: array("q"))
    group_bytes: array[int] = field(default_factory=lambda: array("q"))  # before each group
    n_shown: int = 0
    n_bytes: int = 0
    n_untimed: int = 0
    n_field_pairs: int = 0
    n_leading: int = 0
    _open_field: int | None = None

    def __post_init__(self) -> None:
        self._hides = self.codec in ("vp8", "vp9")
        fields = self.codec == "h264" and not self.trusted_container and self.frame_s is not None
        #: Ticks of half a frame, where packets may be such.
        self._half = float(self.frame_s / 2 / self.time_base) if fields and self.frame_s else None

    def add(self, packet: Any) -> None:
        """Take note of a packet; hidden, discarded and damaged ones are no frames. A film has 90,000 an hour."""
        if not self.is_shown(packet):
            return
        pts, dts, size, is_key = packet.pts, packet.dts, packet.size, packet.is_keyframe
        if is_key or not self.n_shown:
            self.group_starts.append(self.n_shown)
            self.group_bytes.append(self.n_bytes)
        self.n_shown += 1
        self.n_bytes += size
        if dts is not None:
            self.dts.append(dts)
        if pts is None:
            self.n_untimed += 1
            return
        if self._half and self._is_second_field(pts, packet.duration, self._half):
            self.n_field_pairs += 1
            return
        self.pts.append(pts)
        self.sizes.append(size)
        self.durations.append(packet.duration or 0)
        if is_key:
            self.keys.append(pts)
            self.key_seeks.append(pts if self.trusted_container or dts is None else dts)
        elif self.keys and pts < self.keys[-1]:
            self.n_leading += 1

    def is_shown(self, packet: Any) -> bool:
        """False for packets that are no frames: hidden, discarded and damaged ones."""
        if not packet.size or packet.is_discard or packet.is_corrupt:
            return False
        return not (self._hides and _is_hidden(self.codec, packet))

    def _is_second_field(self, pts: int, duration: int | None, half: float) -> bool:
        """Interlaced H.264 in transport streams comes as two packets a frame, each half a frame long."""
        if not duration:
            return False
        if abs(duration - half) > 0.1 * half:
            self._open_field = None
            return False
        first, self._open_field = self._open_field, pts
        if first is not None and 0 < pts - first < 1.5 * half:
            self._open_field = None
            return True
        return False

    def build(self) -> FrameIndex | None:
        """The index; None where the packets cannot tell (no times, or two frames at one time)."""
        pts, order = np.unique(np.asarray(self.pts, np.int64), return_index=True)
        if not self.pts or self.n_untimed or len(pts) != len(self.pts):
            return None
        keys, at = np.unique(np.asarray(self.keys or self.pts[:1], np.int64), return_index=True)
        starts_clean = self.pts[0] == pts[0] == keys[0]
        return FrameIndex(
            pts=pts,
            keys=keys,
            key_seeks=np.asarray(self.key_seeks, np.int64)[at] if self.keys else None,
            time_base=self.time_base,
            last_duration=self.durations[int(order[-1])],
            sizes=np.asarray(self.sizes, np.int64)[order],
            one_packet_one_frame=self.n_field_pairs == 0,
            open_groups=self.n_leading > 0,
            doubtful=not (self.trusted_container and starts_clean),
        )

    def build_by_groups(self, rate: Fraction | None) -> FrameIndex | None:
        """The index of a stream whose clock cannot name frames, one a packet; None where that is not worth a try.

        It is a guess that whoever reads the frames must confirm, group by group.

        Args:
            rate: as for `counted_index`; used where packets do not say when they are decoded.
        """
        sizes = np.diff([*self.group_bytes, self.n_bytes])
        if self.n_field_pairs or len(sizes) < 2 or sizes.max() > _GROUP_LIMIT:
            return None
        times, base = np.asarray(self.dts, np.int64), self.time_base
        if len(times) != self.n_shown or (np.diff(times) <= 0).any():
            times, base = np.arange(self.n_shown, dtype=np.int64), 1 / (rate or _USUAL_RATE)
        starts = np.asarray(self.group_starts, np.int64)
        return FrameIndex(pts=times, keys=times[:1], time_base=base, by_order=True, group_starts=starts)


def counted_index(pts: list[int | None], time_base: Fraction, rate: Fraction | None) -> FrameIndex:
    """Index of a stream that was decoded to its end.

    Args:
        pts: times of the decoded pictures in the order of decoding, in ticks; None where the decoder had none.
        time_base: seconds in a tick.
        rate: frames per second by the header, for streams without usable times; 25 where there is none.
    """
    known = [p for p in pts if p is not None]
    if len(known) == len(pts) and all(a < b for a, b in pairwise(known)):
        times, base = np.asarray(known, np.int64), time_base
    else:
        times, base = np.arange(len(pts), dtype=np.int64), 1 / (rate or _USUAL_RATE)
    return FrameIndex(pts=times, keys=times[:1], time_base=base, by_order=True)


def _is_hidden(codec: str, packet: Any) -> bool:
    """VP8 and VP9 store reference pictures that are never shown as packets of their own."""
    if codec == "vp8":
        return not memoryview(packet)[0] >> 4 & 1
    if codec != "vp9":
        return False
    data = memoryview(packet)
    if data[-1] & 0xE0 == 0xC0:  # superframe: several pictures, the last one shown
        return False
    profile = (data[0] >> 5 & 1) | (data[0] >> 4 & 1) << 1
    shift = 3 if profile < 3 else 2  # bits left after marker and profile (and its reserved bit)
    shows_existing, shown = data[0] >> shift & 1, data[0] >> (shift - 2) & 1
    return not shows_existing and not shown
