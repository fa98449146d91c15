"""Number of a frame -> the frame, where a stream's clock does not name its frames: AVI with B-frames, raw streams.

Packets from a keyframe to the next are a group. Where a group, decoded by itself, gives as many frames as it has
packets, its first frame has the number of its first packet:

    packets   K . . . | K . . | K . . . .       K = keyframe
    numbers   0 1 2 3   4 5 6   7 8 9 10 11

So only groups with a wanted frame are decoded; the packets of the others are read and dropped. Where pictures behind a
keyframe are shown before it, they need the group before, too: both together must give as many frames more than the
first alone as the second has packets. A group that passes neither (damage, fields, repeated pictures) says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from vidqa.media.frame_index.from_packets import IndexMismatchError

#: From the first packet on, and the decoder they are for.
Start = Callable[[], tuple[Iterator[Packet], VideoCodecContext]]

#: Decoded frames that may lie in memory: 3 MB each in HD.
_MOST_KEPT = 16


class GopReader:
    """Frames by number. Ascending numbers read the file once.

    Args:
        starts: int64 [G], ascending, from 0: number of each group's first packet.
        n_frames: packets that are shown, of all groups.
        is_shown: whether a packet counts; those that do not are decoded with the others.
        start: opens the file anew.
    """

    def __init__(self, starts: np.ndarray, n_frames: int, is_shown: Callable[[Packet], bool], start: Start) -> None:
        self._edges = np.append(starts, n_frames)
        self._is_shown = is_shown
        self._start = start
        self._packets: Iterator[Packet] = iter(())
        self._codec: VideoCodecContext | None = None
        self._next = 0  # number of the packet that comes next
        self._held: Packet | None = None  # read already: the first of the next group
        self._lead = 0  # groups decoded before a wanted one: 1 as soon as a group was found to need it
        self._group: int | None = None  # the one that is held
        self._of_group: list[Packet] = []
        self._of_lead: list[Packet] = []
        self._n_lead = 0  # frames of the lead
        self._frames: Iterator[VideoFrame] = iter(())
        self._at: int | None = None  # number of the last frame taken from them
        self._kept: dict[int, VideoFrame] = {}  # wanted ones of the group, by number: met while it was looked at

    def frame(self, number: int, wanted: Collection[int] = ()) -> VideoFrame:
        """Frame `number`.

        Args:
            number: of the frame.
            wanted: it and others that will be asked for; few of one group are kept when it is decoded first.

        Raises:
            IndexMismatchError: its group does not give a frame a packet.
            av.error.FFmpegError: the file cannot be read on.
        """
        group = int(np.searchsorted(self._edges, number, side="right")) - 1
        if group != self._group:
            self._take(group, wanted)
        if number in self._kept:
            return self._kept[number]
        if self._at is None or number <= self._at:
            self._frames = islice(self._decoded(self._of_lead + self._of_group), self._n_lead, None)
            self._at = int(self._edges[group]) - 1
        for frame in self._frames:
            self._at += 1
            if self._at == number:
                return frame
        raise IndexMismatchError(f"no frame {number}")

    def _take(self, group: int, wanted: Collection[int]) -> None:
        """Hold the packets of a group, and those before that it needs, once they were seen to give a frame each."""
        begin, end = int(self._edges[group]), int(self._edges[group + 1])
        here = {number for number in wanted if begin <= number < end}
        self._at, self._kept = None, {}
        self._hold(group)
        self._n_lead = sum(1 for _ in self._decoded(self._of_lead)) if self._of_lead else 0
        number, n_corrupt = begin - self._n_lead, 0
        for frame in self._decoded(self._of_lead + self._of_group):
            n_corrupt += number >= begin and frame.is_corrupt
            if number in here and len(here) <= _MOST_KEPT:
                self._kept[number] = frame
            number += 1
        if number == end and not n_corrupt:
            return
        self._group, self._kept = None, {}
        if self._lead or not group:
            raise IndexMismatchError(f"{end - begin} packets gave {number - begin} frames, {n_corrupt} damaged")
        self._lead = 1
        self._take(group, wanted)

    def _hold(self, group: int) -> None:
        first = max(group - self._lead, 0)
        if self._lead and self._group == group - 1:
            self._of_lead = self._of_group
        else:
            self._of_lead = self._read(first, group)
        self._of_group = self._read(group, group + 1)
        self._group = group

    def _read(self, first: int, last: int) -> list[Packet]:
        """Packets of groups `first` to `last` - 1."""
        begin, end = int(self._edges[first]), int(self._edges[last])
        if self._codec is None or begin < self._next:
            self._packets, self._codec = self._start()
            self._next, self._held = 0, None
        for _ in self._until(begin):
            pass
        return list(self._until(end))

    def _until(self, number: int) -> Iterator[Packet]:
        """Packets before the shown one of this number."""
        while (packet := self._held or next(self._packets, None)) is not None:
            self._held = None
            if self._is_shown(packet):
                if self._next == number:
                    self._held = packet
                    return
                self._next += 1
            if packet.size:
                yield packet

    def _decoded(self, packets: list[Packet]) -> Iterator[VideoFrame]:
        """Frames of these packets, the decoder emptied before and after."""
        assert self._codec is not None
        self._codec.flush_buffers()
        for packet in (*packets, None):
            try:
                yield from self._codec.decode(packet)
            except (av.error.InvalidDataError, av.error.EOFError):
                continue  # a frame less, which the count tells
