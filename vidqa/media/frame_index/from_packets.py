"""Packets of a video stream -> its frame index, without decoding.

Scope: packet attributes only (`pts`, `dts`, `duration`, `size`, `is_keyframe`, `is_discard`, `is_corrupt` and the first
bytes), so that tests need no real stream.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from vidqa.media.frame_index.frame_index import DEFAULT_RATE, FrameIndex

#: Maximum size in bytes of a GOP that is held in memory.
_MAX_GOP_BYTES = 1 << 26


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
    pts: array[int] = field(default_factory=lambda: array("q"))  # arrays: a long video has a million packets
    sizes: array[int] = field(default_factory=lambda: array("q"))
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
    _open_field: int | None = None

    def __post_init__(self) -> None:
        self._has_hidden_frames = self.codec in ("vp8", "vp9")
        fields = self.codec == "h264" and not self.reliable_container and self.frame_s is not None
        #: Duration of a field in ticks, if packets may be fields.
        self._field_duration = float(self.frame_s / 2 / self.time_base) if fields and self.frame_s else None

    def add(self, packet: Any) -> None:
        """Add a packet. Called 90,000 times per hour of video."""
        if not self.is_shown(packet):
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
        """Build the index; None if the packets are ambiguous (without pts, or two frames with the same pts)."""
        pts, order = np.unique(np.asarray(self.pts, np.int64), return_index=True)
        if not self.pts or self.n_without_pts or len(pts) != len(self.pts):
            return None
        keys, at = np.unique(np.asarray(self.keys or self.pts[:1], np.int64), return_index=True)
        starts_with_keyframe = self.pts[0] == pts[0] == keys[0]
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
        times, base = np.asarray(self.dts, np.int64), self.time_base
        if len(times) != self.n_shown or (np.diff(times) <= 0).any():
            times, base = np.arange(self.n_shown, dtype=np.int64), 1 / (rate or DEFAULT_RATE)
        starts = np.asarray(self.gop_starts, np.int64)
        return FrameIndex(pts=times, keys=times[:1], time_base=base, by_order=True, gop_starts=starts)


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
