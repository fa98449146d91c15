"""Packets of a video stream -> its frame index, without decoding.

Scope: packet attributes only (`pts`, `dts`, `duration`, `size`, `is_keyframe`, `is_discard`, `is_corrupt`, `pos` and
the first bytes), so that tests need no real stream.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from vidqa.media.frame_index.clock import MIN_BACKWARD_JUMP_S, largest_jump, repair_clock, unwrap_clock
from vidqa.media.frame_index.frame_index import DEFAULT_RATE, FrameIndex

#: Maximum size in bytes of a GOP that is held in memory.
_MAX_GOP_BYTES = 1 << 26
#: A gap before a damaged packet is part of the damage if it is this many times as long as an ordinary packet.
_MIN_LOST = 10
#: A single packet that the container marks as damaged is often intact, where two recordings were joined.
_MIN_SUSPECTED_S = 0.1


@dataclass
class PacketIndexBuilder:
    """Collects the packets of a stream in file order.

    `key_seeks` are the seek targets that reach the packet of a keyframe. Containers with an index of keyframes find
    it by its pts. In streams without one (MPEG), FFmpeg searches for the last packet whose dts is not after the target.
    With B-frames and a pts as target, that is a packet after the keyframe, and decoding could only start at the next
    one; so the target is the dts.
    """

    codec: str  # FFmpeg's canonical name
    time_base: Fraction
    frame_s: Fraction | None  # 1 / frame rate from the header, to distinguish fields from frames
    reliable_container: bool  # the container stores one frame per packet, with its pts
    wraps: bool = False  # the clock of the container has 33 bits
    pts: array[int] = field(default_factory=lambda: array("q"))  # arrays: a long video has a million packets
    sizes: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))  # in the file; -1 if unknown
    durations: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    key_seeks: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    gop_starts: array[int] = field(default_factory=lambda: array("q"))
    gop_offsets: array[int] = field(default_factory=lambda: array("q"))  # bytes before each GOP
    n_shown: int = 0
    n_bytes: int = 0
    n_without_pts: int = 0
    n_field_pairs: int = 0
    n_leading: int = 0
    damaged_pts: array[int] = field(default_factory=lambda: array("q"))
    _open_field: int | None = None

    def __post_init__(self) -> None:
        self._has_hidden_frames = self.codec in ("vp8", "vp9")
        fields = self.codec == "h264" and not self.reliable_container and self.frame_s is not None
        #: Duration of a field in ticks, if packets may be fields.
        self._field_duration = float(self.frame_s / 2 / self.time_base) if fields and self.frame_s else None

    def add(self, packet: Any) -> None:
        """Add a packet. Called 90,000 times per hour of video."""
        if not self.is_shown(packet):
            if packet.is_corrupt and packet.size and packet.pts is not None:
                self.damaged_pts.append(packet.pts)
            return
        pts, dts, size, is_key = packet.pts, packet.dts, packet.size, packet.is_keyframe
        if is_key or not self.n_shown:
            self.gop_starts.append(self.n_shown)
            self.gop_offsets.append(self.n_bytes)
        self.n_shown += 1
        self.n_bytes += size
        if dts is not None:
            self.dts.append(dts)
        if pts is None:
            self.n_without_pts += 1
            return
        if self._field_duration and self._is_second_field(pts, packet.duration, self._field_duration):
            self.n_field_pairs += 1
            return
        self.pts.append(pts)
        self.sizes.append(size)
        self.offsets.append(-1 if packet.pos is None else packet.pos)
        self.durations.append(packet.duration or 0)
        if is_key:
            self.keys.append(pts)
            self.key_seeks.append(pts if self.reliable_container or dts is None else dts)
        elif self.keys and pts < self.keys[-1]:
            self.n_leading += 1

    def is_shown(self, packet: Any) -> bool:
        """Return whether a packet is a displayed frame: not hidden, discarded or damaged."""
        if not packet.size or packet.is_discard or packet.is_corrupt:
            return False
        return not (self._has_hidden_frames and _is_hidden(self.codec, packet))

    def _is_second_field(self, pts: int, duration: int | None, field_duration: float) -> bool:
        """Return whether a packet completes the frame that the previous one started.

        Interlaced H.264 in transport streams has two packets per frame, each half a frame long.
        """
        if not duration:
            return False
        if abs(duration - field_duration) > 0.1 * field_duration:
            self._open_field = None
            return False
        first, self._open_field = self._open_field, pts
        if first is not None and 0 < pts - first < 1.5 * field_duration:
            self._open_field = None
            return True
        return False

    def build(self) -> FrameIndex | None:
        """Build the index; None if the packets are ambiguous.

        They are if they have no pts, if two frames have the same pts, or if the clock jumps backward.
        """
        pts, order = np.unique(np.asarray(self.pts, np.int64), return_index=True)
        if not self.pts or self.n_without_pts or len(pts) != len(self.pts):
            return None
        second = float(1 / self.time_base)
        if (np.diff(self.clock(self.dts)) <= -MIN_BACKWARD_JUMP_S * second).any():
            return None
        keys, at = np.unique(np.asarray(self.keys or self.pts[:1], np.int64), return_index=True)
        starts_with_keyframe = self.pts[0] == pts[0] == keys[0]
        suspected_s = self.missing_s(pts, pts) if self.damaged_pts else 0.0
        return FrameIndex(
            pts=pts,
            keys=keys,
            key_seeks=np.asarray(self.key_seeks, np.int64)[at] if self.keys else None,
            time_base=self.time_base,
            last_duration=self.durations[int(order[-1])],
            sizes=np.asarray(self.sizes, np.int64)[order],
            one_packet_one_frame=self.n_field_pairs == 0,
            open_gops=self.n_leading > 0,
            needs_check=not (self.reliable_container and starts_with_keyframe),
            unreadable_s=suspected_s if suspected_s > _MIN_SUSPECTED_S else 0.0,
            jump_s=self.jump_s(),
        )

    def build_by_gops(self, rate: Fraction | None) -> FrameIndex | None:
        """Build the index of a stream whose frames cannot be addressed by pts, assuming one frame per packet.

        The assumption is unverified; `GopReader` checks it for each GOP that it decodes.

        Args:
            rate: frame rate from the header in frames per second, used if packets have no dts; None means 25.

        Returns:
            The index; None if the stream has field pairs, fewer than two GOPs, or a GOP too large for memory.
        """
        sizes = np.diff([*self.gop_offsets, self.n_bytes])
        if self.n_field_pairs or len(sizes) < 2 or sizes.max() > _MAX_GOP_BYTES:
            return None
        rate, second = rate or DEFAULT_RATE, float(1 / self.time_base)
        times = self.clock(self.dts)
        repaired = repair_clock(times, second, float(rate)) if len(times) == self.n_shown else None
        numbers, shown = repaired or (None, np.arange(self.n_shown, dtype=np.int64))
        return FrameIndex(
            pts=shown,
            keys=shown[:1],
            time_base=self.time_base if repaired else 1 / rate,
            by_order=True,
            gop_starts=np.asarray(self.gop_starts, np.int64),
            numbers=numbers,
            jump_s=self.jump_s(),
        )

    def clock(self, times: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return timestamps in stream order, int64 [N]: those that FFmpeg takes for wrapped around are restored."""
        ticks = np.asarray(times, np.int64)
        return unwrap_clock(ticks) if self.wraps and len(ticks) else ticks

    def missing_s(self, shown: np.ndarray, stored: np.ndarray) -> float:
        """Return for how many seconds the packets without a frame would be shown, each up to the next packet.

        Damaged packets before the first and after the last of `stored` do not count: a recording often starts and ends
        with one.

        Args:
            shown: int64 [N], ticks, ascending: pts of the frames.
            stored: int64 [M], ticks, ascending: pts of the intact packets.
        """
        damaged = np.asarray(self.damaged_pts, np.int64)
        stored = np.union1d(stored, damaged[(damaged > stored[0]) & (damaged < stored[-1])])
        missing = np.flatnonzero(~np.isin(stored, shown))
        steps = np.diff(stored, append=stored[-1] + self.durations[-1])
        ordinary = float(np.median(steps))
        before = steps[np.maximum(missing - 1, 0)] * ~np.isin(missing - 1, np.append(missing, -1))
        # Packets before a damaged one may be lost completely.
        lost = steps[missing].sum() + (before - ordinary)[before > _MIN_LOST * ordinary].sum()
        return float(lost * float(self.time_base))

    def jump_s(self) -> float:
        """Return the largest jump of the clock in seconds; 0 if there is none."""
        second = float(1 / self.time_base)
        return largest_jump(self.clock(self.dts or sorted(self.pts)), second) / second

    def duration_s(self) -> float:
        """Return the duration of all packets in seconds, the same for every source of the index."""
        index = self.build()
        if index is not None:
            return index.duration_s
        frame_s = float(self.frame_s or 1 / DEFAULT_RATE)
        times = self.clock(self.dts)
        if len(times) and len(times) == self.n_shown and (np.diff(times) >= 0).all():
            return float(int(times[-1] - times[0]) * self.time_base) + frame_s
        return self.n_shown * frame_s


def _is_hidden(codec: str, packet: Any) -> bool:
    """Return whether a packet of VP8 or VP9 contains only a reference frame that is never shown."""
    if codec == "vp8":
        return not memoryview(packet)[0] >> 4 & 1
    if codec != "vp9":
        return False
    data = memoryview(packet)
    if data[-1] & 0xE0 == 0xC0:  # superframe: several frames, of which the last one is shown
        return False
    profile = (data[0] >> 5 & 1) | (data[0] >> 4 & 1) << 1
    shift = 3 if profile < 3 else 2  # bits after marker and profile (and its reserved bit)
    shows_existing, shown = data[0] >> shift & 1, data[0] >> (shift - 2) & 1
    return not shows_existing and not shown
