"""Path -> frames at exact indices, by PyAV. Does not choose which frames.

Which frames there are tells the first of these that can: the file's own list (`listed`), its packets (`index`), the
packets of each group of pictures by their number (`groups`), decoding all of it.

Sparse frames are reached by seeking to the keyframe before each and decoding from there; on the way, pictures that
nothing refers to are skipped. Colours: the stream's own range, and the BT.601 matrix for all streams. That is what
decord does, and decord made the frames that the published encoders were trained on; decoding HD material by its BT.709
tag would be truer to the eye and farther from what the encoders know. Output is upright and in square pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from typing import Literal

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.container import (
    OpenVideo,
    decode_error,
    decode_first_frame,
    facts_from_header,
    facts_from_index,
    open_video,
    orientation,
    read_packets,
)
from vidqa.media.frame_index.from_container import index_from_container
from vidqa.media.frame_index.from_gops import GopReader
from vidqa.media.frame_index.from_packets import (
    FrameIndex,
    IndexMismatchError,
    PacketIndexBuilder,
    Trusted,
    counted_index,
)
from vidqa.media.pixels import to_display_rgb
from vidqa.media.sniff import Signature

#: Containers that store one frame a packet together with the time when it is shown.
_TRUSTED = ("mov", "matroska")
#: Codecs whose decoders are asked to leave out pictures that nothing refers to; others were not found to gain.
_SKIPPING = ("h264", "hevc")
#: Decoded frames that are compared with a doubtful index.
_N_CHECKED = 24
#: How many keyframes earlier a seek is tried before the file is decoded from its start.
_N_EARLIER_KEYS = 3


class PyavReader:
    """Frames of one video, by index.

    Args:
        path: of the file.
        signature: of its first bytes, where known.
        trusted: what tells which frames there are: the file's own list of them, where there is one, its packets, or
            decoding the whole stream once.

    Raises:
        MediaError: no frame can be had; the kind says why.
    """

    backend = "pyav"

    def __init__(self, path: str, signature: Signature | None = None, *, trusted: Trusted = "list") -> None:
        self.path = path
        self._signature = signature
        self._exit = ExitStack()
        self._packets: Iterator[Packet] = iter(())
        self._ahead: list[VideoFrame] = []  # decoded, not yet asked for
        self._way: Literal["seek", "pass", "decode"] = "seek"  # how far ahead is gone; a way that failed is left
        self._sought = False  # True after a seek, until the next start from the first packet
        self._position: int | None = None  # last frame given: ticks, or its number where frames go by order
        self._groups: GopReader | None = None
        self._begun_at: int | None = None  # last keyframe that the decoder was given: ticks
        try:
            self.opened = self._open()  # anew where the file is read from its start again
            builder = self._index_builder()
            frame = decode_first_frame(self.opened, builder.add)
            self._header = facts_from_header(self.opened, frame)
            self._turn, self.mirrored = orientation(frame)
            index = self._index_from_list(frame.pts) if trusted == "list" else None
            if not index and trusted != "decoding":
                index = self._index_from_packets(builder)
            self.index = index or self._index_from_decoding()
            if self.index.group_starts is not None:
                self._groups = GopReader(self.index.group_starts, len(self.index), builder.is_shown, self._from_start)
        except BaseException:
            self.close()
            raise
        self.facts = facts_from_index(self._header, self.index)
        self.pts_s = self.index.pts_s

    def __enter__(self) -> PyavReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._ahead, self._packets = [], iter(())
        self._exit.close()

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames in the order of `indices`; ascending order is fast, each a fresh uint8 RGB array [H, W, 3].

        Raises:
            IndexMismatchError: the decoder does not give a frame that the packets promised.
            MediaError: the file cannot be read on.
        """
        numbers = {int(i) for i in indices}
        wanted = {int(self.index.pts[i]) for i in numbers}
        for i in indices:
            try:
                if self._groups is not None:
                    frame = self._groups.frame(int(i), numbers)
                elif self.index.by_order:
                    frame = self._by_order(int(i))
                else:
                    frame = self._by_time(int(self.index.pts[i]), wanted)
            except av.error.FFmpegError as e:
                raise decode_error(self.path, e) from e
            yield to_display_rgb(frame, self.facts, self._turn, self.mirrored)

    def _open(self) -> OpenVideo:
        self._exit.close()
        opened = self._exit.enter_context(open_video(self.path, self._signature))
        self._signature = opened.signature
        return opened

    def _restart(self) -> None:
        """Back to the first packet, the sure way: seeking to the start is not exact in every container."""
        self.opened = self._open()
        self._packets = read_packets(self.opened)
        self._ahead, self._position, self._begun_at, self._sought = [], None, None, False

    def _from_start(self) -> tuple[Iterator[Packet], VideoCodecContext]:
        self._restart()
        return self._packets, self.opened.stream.codec_context

    def _index_builder(self) -> PacketIndexBuilder:
        stream = self.opened.stream
        return PacketIndexBuilder(
            codec=stream.codec_context.codec.canonical_name,
            time_base=self.opened.time_base,
            frame_s=1 / Fraction(stream.average_rate) if stream.average_rate else None,
            trusted_container=self.opened.container.format.name.startswith(_TRUSTED),
        )

    def _index_from_list(self, first_pts: int | None) -> FrameIndex | None:
        try:
            return index_from_container(self.opened, first_pts)
        except IndexMismatchError:  # known at another place of the file: back to where the first frame was read
            self.opened = self._open()
            decode_first_frame(self.opened)
            return None

    def _index_from_packets(self, builder: PacketIndexBuilder) -> FrameIndex | None:
        """Read the packets behind those that the first picture took, decode none. None where they cannot tell.

        The file is not opened anew for it: that alone takes 3 to 4 ms, a twentieth of a short clip's time.
        """
        try:
            for packet in read_packets(self.opened):
                builder.add(packet)
        except av.error.FFmpegError:
            pass  # a broken tail: what came before it counts
        index = builder.build()
        if index is None or (index.doubtful and not self._starts_as(index)):
            return builder.build_by_groups(self.opened.stream.average_rate)
        return index

    def _starts_as(self, index: FrameIndex) -> bool:
        """Whether the first frames that the decoder gives are the first frames of the index."""
        self._restart()
        n = min(_N_CHECKED, len(index))
        try:
            given = [frame.pts for frame, _ in zip(self._decoded(), range(n), strict=False)]
        except av.error.FFmpegError:
            return False
        return given == [int(p) for p in index.pts[:n]]

    def _index_from_decoding(self) -> FrameIndex:
        self._restart()
        times: list[int | None] = []
        try:
            for frame in self._decoded():
                times.append(frame.pts)
        except av.error.FFmpegError as e:
            if not times:
                raise decode_error(self.path, e) from e
        if not times:
            raise MediaError("unreadable", f"{display_path(self.path)}: frames were decoded once and not again")
        return counted_index(times, self.opened.time_base, self.opened.stream.average_rate)

    def _decoded(self, wanted: set[int] | None = None) -> Iterator[VideoFrame]:
        """Decode on from here. Damaged packets are passed over, as players do.

        Args:
            wanted: frames by time; pictures that are neither wanted nor referred to may be left undecoded.
        """
        codec = self.opened.stream.codec_context
        while self._ahead:
            yield self._ahead.pop(0)
        for packet in self._packets:
            if self._sought and self.index.contradicts(packet):
                return
            if wanted is not None:
                codec.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
            if packet.is_keyframe and packet.pts is not None:
                self._begun_at = packet.pts
            try:
                self._ahead.extend(packet.decode())
            except av.error.InvalidDataError:
                continue
            while self._ahead:
                yield self._ahead.pop(0)

    def _by_order(self, number: int) -> VideoFrame:
        if self._position is None or number <= self._position:
            self._restart()
        at = -1 if self._position is None else self._position
        for frame in self._decoded():
            at += 1
            if at == number:
                self._position = number
                return frame
        raise MediaError("unreadable", f"{display_path(self.path)}: frame {number} was decoded once and not again")

    def _by_time(self, pts: int, wanted: set[int]) -> VideoFrame:
        """The frame at `pts`, by the first way that gives it: on from here, by a seek, front to back.

        Front to back, packets before the keyframe are read and not decoded, unless that fails, too.
        """
        keys, at = self.index.keys, self._position
        key = int(np.searchsorted(keys, pts, side="right")) - 1
        ahead = at is not None and at < pts
        begun = self._way == "decode" or key < 0 or keys[key] in (at, self._begun_at) or (ahead and keys[key] <= at)
        if ahead and begun and (frame := self._decode_to(pts, wanted)):
            return frame
        if self._way == "seek":
            for earlier in range(key, -1, -1)[:_N_EARLIER_KEYS]:
                if self._seek(earlier) and (frame := self._decode_to(pts, wanted)):
                    return frame
            if self.index.guessed:
                raise IndexMismatchError(f"{display_path(self.path)}: no frame at tick {pts}, which its list tells")
            self._way = "pass"
        if self._way == "pass":
            if self._pass_over(key) and (frame := self._decode_to(pts, wanted)):
                return frame
            self._way = "decode"
        self._restart()
        if frame := self._decode_to(pts, wanted):
            return frame
        raise IndexMismatchError(f"{display_path(self.path)}: no frame at tick {pts}")

    def _seek(self, key: int) -> bool:
        """Go to a keyframe, by its number; False where the container cannot."""
        aims = self.index.keys if self.index.key_seeks is None else self.index.key_seeks
        try:
            self.opened.container.seek(int(aims[key]), stream=self.opened.stream, backward=True, any_frame=False)
        except av.error.FFmpegError:
            return False
        self._packets = read_packets(self.opened)
        self._ahead, self._position, self._begun_at, self._sought = [], None, None, True
        return True

    def _pass_over(self, key: int) -> bool:
        """Read on to a keyframe, by its number, and decode nothing before it; False where it does not come."""
        pts = int(self.index.keys[max(key, 0)])
        last = max((p for p in (self._position, self._begun_at) if p is not None), default=None)
        if last is None or self._sought or pts <= last:
            self._restart()
        for packet in self._packets:
            if packet.is_keyframe and packet.pts == pts:
                self.opened.stream.codec_context.flush_buffers()
                self._packets = chain((packet,), self._packets)
                self._ahead, self._position = [], None
                return True
        return False

    def _decode_to(self, pts: int, wanted: set[int]) -> VideoFrame | None:
        """Decode until the frame at `pts`; None where it does not come."""
        skip = wanted if self.index.one_packet_one_frame and self._header.codec in _SKIPPING else None
        for frame in self._decoded(skip):
            if frame.pts is None:
                continue
            self._position = frame.pts
            if frame.pts == pts:
                return None if frame.is_corrupt else frame
            if frame.pts > pts:
                return None
        return None
