"""Frame number -> frame, for streams whose pts do not identify frames: AVI with B-frames, raw streams.

A GOP is a keyframe and the packets up to the next one. If a GOP, decoded on its own, returns one frame per packet, its
first frame has the number of its first packet:

    packets   K . . . | K . . | K . . . .       K = keyframe
    numbers   0 1 2 3   4 5 6   7 8 9 10 11

So only the GOPs of requested frames are decoded; all other packets are read and dropped. An open GOP, in which frames
stored after the keyframe are shown before it, is decoded together with the GOP before it: the pair must return one more
frame per packet of the second GOP than the first GOP alone. A GOP that fails both checks (damage, fields, repeated
frames) raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from vidqa.media.frame_index.frame_index import IndexMismatchError
from vidqa.media.workers.heartbeat import beat

#: Function that reopens the file and returns its packets from the first one on, and their decoder.
Restart = Callable[[], tuple[Iterator[Packet], VideoCodecContext]]

#: Maximum number of decoded frames in memory: 3 MB each at 1080p.
_MAX_KEPT = 16


class GopReader:
    """Reads frames by number. Ascending numbers read the file once.

    Args:
        starts: int64 [G], ascending from 0: number of the first packet of each GOP.
        n_frames: number of displayed packets in all GOPs.
        is_shown: returns whether a packet counts as a frame. Other packets are decoded, but not counted.
        restart: reopens the file.
    """

    def __init__(self, starts: np.ndarray, n_frames: int, is_shown: Callable[[Packet], bool], restart: Restart) -> None:
        self._edges = np.append(starts, n_frames)
        self._is_shown = is_shown
        self._restart = restart
        self._packets: Iterator[Packet] = iter(())
        self._codec: VideoCodecContext | None = None
        self._next = 0  # number of the next packet
        self._pushed_back: Packet | None = None  # already read: the first packet of the next GOP
        self._n_lead_gops = 0  # GOPs to decode before a requested one: 1 once an open GOP was found
        self._gop: int | None = None  # number of the GOP in memory
        self._gop_packets: list[Packet] = []
        self._lead_packets: list[Packet] = []
        self._n_lead_frames = 0
        self._frames: Iterator[VideoFrame] = iter(())
        self._at: int | None = None  # number of the last frame taken from `_frames`
        self._kept: dict[int, VideoFrame] = {}  # requested frames of the GOP by number, kept while it was verified

    def frame(self, number: int, wanted: Collection[int] = ()) -> VideoFrame:
        """Return frame `number`.

        Args:
            number: frame number.
            wanted: this and later frame numbers. When a GOP is decoded for the first time, the wanted frames in it are
                kept, unless they are more than `_MAX_KEPT`.

        Raises:
            IndexMismatchError: its GOP does not return one frame per packet.
            av.error.FFmpegError: the file cannot be read any further.
        """
        gop = int(np.searchsorted(self._edges, number, side="right")) - 1
        if gop != self._gop:
            self._load(gop, wanted)
        if number in self._kept:
            return self._kept[number]
        if self._at is None or number <= self._at:
            self._frames = islice(self._decoded(self._lead_packets + self._gop_packets), self._n_lead_frames, None)
            self._at = int(self._edges[gop]) - 1
        for frame in self._frames:
            self._at += 1
            if self._at == number:
                return frame
        raise IndexMismatchError(f"no frame {number}")

    def _load(self, gop: int, wanted: Collection[int]) -> None:
        """Load the packets of a GOP and of the GOP before if needed, and verify that each returns a frame."""
        start, end = int(self._edges[gop]), int(self._edges[gop + 1])
        requested = {number for number in wanted if start <= number < end}
        self._at, self._kept = None, {}
        self._load_packets(gop)
        self._n_lead_frames = sum(1 for _ in self._decoded(self._lead_packets)) if self._lead_packets else 0
        number, n_corrupt = start - self._n_lead_frames, 0
        for frame in self._decoded(self._lead_packets + self._gop_packets):
            n_corrupt += number >= start and frame.is_corrupt
            if number in requested and len(requested) <= _MAX_KEPT:
                self._kept[number] = frame
            number += 1
        if number == end and not n_corrupt:
            return
        self._gop, self._kept = None, {}
        if self._n_lead_gops or not gop:
            raise IndexMismatchError(f"{end - start} packets returned {number - start} frames, {n_corrupt} damaged")
        self._n_lead_gops = 1
        self._load(gop, wanted)

    def _load_packets(self, gop: int) -> None:
        first = max(gop - self._n_lead_gops, 0)
        if self._n_lead_gops and self._gop == gop - 1:
            self._lead_packets = self._gop_packets
        else:
            self._lead_packets = self._read(first, gop)
        self._gop_packets = self._read(gop, gop + 1)
        self._gop = gop

    def _read(self, first: int, last: int) -> list[Packet]:
        """Return the packets of GOPs `first` to `last` - 1."""
        start, end = int(self._edges[first]), int(self._edges[last])
        if self._codec is None or start < self._next:
            self._packets, self._codec = self._restart()
            self._next, self._pushed_back = 0, None
        for _ in self._until(start):
            pass
        return list(self._until(end))

    def _until(self, number: int) -> Iterator[Packet]:
        """Yield packets up to the displayed packet `number`, exclusive."""
        while (packet := self._pushed_back or next(self._packets, None)) is not None:
            self._pushed_back = None
            if self._is_shown(packet):
                if self._next == number:
                    self._pushed_back = packet
                    return
                self._next += 1
            if packet.size:
                yield packet

    def _decoded(self, packets: list[Packet]) -> Iterator[VideoFrame]:
        """Yield the frames of these packets; the decoder is flushed before and drained after."""
        assert self._codec is not None
        self._codec.flush_buffers()
        for packet in (*packets, None):
            try:
                for frame in self._codec.decode(packet):
                    beat()  # all packets of the GOP have been read before
                    yield frame
            except (av.error.InvalidDataError, av.error.EOFError):
                continue  # a missing frame; the count reveals it
