"""Path -> frames by index, with PyAV.

The frame index comes from the first source that works: the container's sample table (`from_container`), the packets
(`from_packets`), the packets of each GOP by number (`gop_reader`), or decoding the whole stream.

Sparse frames are reached by seeking to the keyframe before each one and decoding from there, skipping non-reference
frames. Colors are converted with the range and the matrix that the stream is tagged with, and with BT.601 if it has no
tag. decord does the same, and the published encoders were trained on frames from decord. HDR video is not tone-mapped.
Frames are upright and have square pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Literal

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.backends.gop_reader import GopReader
from vidqa.media.backends.lost_references import LostReferences
from vidqa.media.completeness.video_notes import completeness_notes
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
from vidqa.media.frame_index.frame_index import FrameIndex, IndexMismatchError, IndexSource
from vidqa.media.frame_index.from_container import index_from_container
from vidqa.media.frame_index.from_decoding import index_from_decoding
from vidqa.media.frame_index.from_packets import PacketIndexBuilder
from vidqa.media.frame_index.holes import add_holes
from vidqa.media.pixels import has_alpha, to_display_rgb
from vidqa.media.sniff import Signature

#: Containers that store one frame per packet, with its pts.
_RELIABLE_CONTAINERS = ("mov", "matroska")
#: Codecs whose decoders are asked to skip non-reference frames; for others, skipping showed no gain.
_SKIPPING = ("h264", "hevc")
#: Number of decoded frames that are compared with an index that needs a check.
_N_CHECKED = 24
#: Number of earlier keyframes that are tried as seek targets before the file is read from its start.
_N_EARLIER_KEYS = 3


class PyavReader:
    """Reads frames of one video by index.

    Args:
        path: path of the file.
        signature: its signature if already determined.
        index_source: first source to try for the frame index: the container's sample table, the packets, or decoding
            the whole stream.

    Raises:
        MediaError: no frame can be decoded; `kind` is the reason.
    """

    backend = "pyav"

    def __init__(
        self, path: str, signature: Signature | None = None, *, index_source: IndexSource = "container"
    ) -> None:
        self.path = path
        self._signature = signature
        self._exit = ExitStack()
        self._packets: Iterator[Packet] = iter(())
        self._ahead: list[VideoFrame] = []  # decoded, not yet requested
        self._strategy: Literal["seek", "skip", "decode"] = "seek"  # how to move forward; one that failed is dropped
        self._after_seek = False  # True from a seek until the next restart from the first packet
        self._position: int | None = None  # last returned frame: pts in ticks, or its number if `by_order`
        self._gops: GopReader | None = None
        self._last_key: int | None = None  # pts of the last keyframe that was sent to the decoder, in ticks
        self._references = LostReferences()
        try:
            self.video = self._open()  # replaced when the file is read from its start again
            builder = self._index_builder()
            frame = decode_first_frame(self.video, builder.add)
            self._header = facts_from_header(self.video, frame)
            self._rotation_deg, self.mirrored = orientation(frame)
            self.has_alpha = has_alpha(frame)
            index = self._index_from_container(frame.pts) if index_source == "container" else None
            if not index and index_source != "decoding":
                index = self._index_from_packets(builder)
            if not index:
                builder = self._index_builder()
                index = self._index_from_decoding(builder)
            self.index = index
            if self.index.gop_starts is not None:
                self._gops = GopReader(self.index.gop_starts, builder.n_shown, builder.is_shown, self._from_start)
        except BaseException:
            self.close()
            raise
        self.facts = facts_from_index(self.video, self._header, self.index)
        if self.facts.kind == "video":
            readable_s = (builder.duration_s() if self.index.by_order else 0.0) or self.index.duration_s
            notes = completeness_notes(self.video, self.index, readable_s)
            self.facts = replace(self.facts, notes=(*self.facts.notes, *notes))
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
        """Yield frames in the order of `indices`, each a new uint8 RGB array [H, W, 3]. Ascending order is fastest.

        Raises:
            IndexMismatchError: the decoder does not return a frame that is in the index.
            MediaError: the file cannot be read any further.
        """
        by_order = self.index.by_order
        table = self.index.numbers if by_order else self.index.pts
        ids = [int(i if table is None else table[i]) for i in indices]
        wanted = set(ids)
        for frame_id in ids:  # number or pts
            try:
                if self._gops is not None:
                    frame = self._gops.frame(frame_id, wanted)
                elif by_order:
                    frame = self._by_order(frame_id)
                else:
                    frame = self._by_pts(frame_id, wanted)
                pixels = to_display_rgb(frame, self.facts, self._rotation_deg, self.mirrored)
            except av.error.FFmpegError as e:
                raise decode_error(self.path, e) from e
            yield pixels

    def _open(self) -> OpenVideo:
        self._exit.close()
        video = self._exit.enter_context(open_video(self.path, self._signature))
        self._signature = video.signature
        return video

    def _restart(self) -> None:
        """Return to the first packet by reopening the file: a seek to the start is not exact in every container."""
        self.video = self._open()
        self._packets = read_packets(self.video)
        self._ahead, self._position, self._last_key, self._after_seek = [], None, None, False
        self._references.restart()

    def _from_start(self) -> tuple[Iterator[Packet], VideoCodecContext]:
        self._restart()
        return self._packets, self.video.codec

    def _index_builder(self) -> PacketIndexBuilder:
        stream = self.video.stream
        return PacketIndexBuilder(
            codec=stream.codec_context.codec.canonical_name,
            time_base=self.video.time_base,
            frame_s=1 / self.video.average_rate if self.video.average_rate else None,
            reliable_container=self.video.container.format.name.startswith(_RELIABLE_CONTAINERS),
            wraps=self.video.demuxer in ("mpegts", "mpeg"),
        )

    def _index_from_container(self, first_pts: int | None) -> FrameIndex | None:
        try:
            return index_from_container(self.video, first_pts)
        except IndexMismatchError:  # the read position has changed: return to where the first frame was read
            self.video = self._open()
            decode_first_frame(self.video)
            return None

    def _index_from_packets(self, builder: PacketIndexBuilder) -> FrameIndex | None:
        """Read the packets after those of the first frame without decoding; None if they are ambiguous.

        The file is not reopened: that takes 3 to 4 ms, a twentieth of the decoding time of a short video.
        """
        try:
            for packet in read_packets(self.video):
                builder.add(packet)
        except av.error.FFmpegError:
            pass  # the rest of the file is damaged; keep the frames before it
        add_holes(builder, self.video)
        index = builder.build()
        if index is None or (index.needs_check and not self._starts_like(index)):
            return builder.build_by_gops(self.video.average_rate)
        return index

    def _starts_like(self, index: FrameIndex) -> bool:
        """Return whether the first decoded frames are the first frames of the index."""
        self._restart()
        n = min(_N_CHECKED, len(index))
        try:
            decoded = [frame.pts for frame, _ in zip(self._decoded(), range(n), strict=False)]
        except av.error.FFmpegError:
            return False
        return decoded == [int(p) for p in index.pts[:n]]

    def _index_from_decoding(self, builder: PacketIndexBuilder) -> FrameIndex:
        self._restart()
        self._references.n_failed = 0
        times: list[int | None] = []
        intact: list[bool] = []
        try:
            for frame in self._decoded(on_packet=builder.add):
                if not times and not builder.reliable_container:
                    self._references.n_failed = 0  # a recording that starts in the middle of a GOP is not damaged
                times.append(frame.pts)
                intact.append(self._references.is_intact(frame))
        except av.error.FFmpegError as e:
            if not times:
                raise decode_error(self.path, e) from e
        if not times:
            raise MediaError("unreadable", f"{display_path(self.path)}: decoding does not return the same frames twice")
        add_holes(builder, self.video)
        rate = self.video.average_rate
        return index_from_decoding(times, intact, builder, rate, damaged=self._references.n_failed > 0)

    def _decoded(
        self, wanted: set[int] | None = None, on_packet: Callable[[Packet], None] | None = None
    ) -> Iterator[VideoFrame]:
        """Decode from the current position. Damaged packets are skipped, as players do.

        Args:
            wanted: pts of requested frames; other non-reference frames may be skipped.
            on_packet: called with every packet.
        """
        codec = self.video.codec
        while self._ahead:
            yield self._ahead.pop(0)
        for packet in self._packets:
            if self._after_seek and self.index.contradicts(packet):
                return
            if on_packet is not None:
                on_packet(packet)
            if wanted is not None:
                codec.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
            if packet.is_keyframe and packet.pts is not None:
                self._last_key = packet.pts
            self._references.add(packet)
            try:
                self._ahead.extend(codec.decode(packet))
            except av.error.InvalidDataError:
                self._references.fail()
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
        raise MediaError(
            "unreadable", f"{display_path(self.path)}: frame {number} was decoded once, but not a second time"
        )

    def _by_pts(self, pts: int, wanted: set[int]) -> VideoFrame:
        """Return the frame at `pts`: continue decoding, or seek, or read from the start of the file.

        When reading from the start, packets before the keyframe are not decoded, unless that fails too.
        """
        keys, at = self.index.keys, self._position
        key = int(np.searchsorted(keys, pts, side="right")) - 1
        ahead = at is not None and at < pts
        same_gop = (
            self._strategy == "decode" or key < 0 or keys[key] in (at, self._last_key) or (ahead and keys[key] <= at)
        )
        if ahead and same_gop and (frame := self._decode_to(pts, wanted)):
            return frame
        if self._strategy == "seek":
            for earlier in range(key, -1, -1)[:_N_EARLIER_KEYS]:
                if self._seek(earlier) and (frame := self._decode_to(pts, wanted)):
                    return frame
            if self.index.unverified:
                raise IndexMismatchError(f"{display_path(self.path)}: no frame at pts {pts}, which the index contains")
            self._strategy = "skip"
        if self._strategy == "skip":
            if self._skip_to(key) and (frame := self._decode_to(pts, wanted)):
                return frame
            self._strategy = "decode"
        self._restart()
        if frame := self._decode_to(pts, wanted):
            return frame
        raise IndexMismatchError(f"{display_path(self.path)}: no frame at pts {pts}")

    def _seek(self, key: int) -> bool:
        """Seek to keyframe number `key`; False if the container does not support it."""
        targets = self.index.keys if self.index.key_seeks is None else self.index.key_seeks
        try:
            self.video.container.seek(int(targets[key]), stream=self.video.stream, backward=True, any_frame=False)
        except av.error.FFmpegError:
            return False
        self.video.codec.flush_buffers()  # PyAV resets only the stream's own decoder
        self._packets = read_packets(self.video)
        self._ahead, self._position, self._last_key, self._after_seek = [], None, None, True
        self._references.restart()
        return True

    def _skip_to(self, key: int) -> bool:
        """Read up to keyframe number `key` without decoding; False if it does not occur."""
        pts = int(self.index.keys[max(key, 0)])
        last = max((p for p in (self._position, self._last_key) if p is not None), default=None)
        if last is None or self._after_seek or pts <= last:
            self._restart()
        for packet in self._packets:
            if packet.is_keyframe and packet.pts == pts:
                self.video.codec.flush_buffers()
                self._packets = chain((packet,), self._packets)
                self._ahead, self._position = [], None
                return True
        return False

    def _decode_to(self, pts: int, wanted: set[int]) -> VideoFrame | None:
        """Decode up to the frame at `pts`; None if it does not occur."""
        skip = wanted if self.index.one_packet_one_frame and self._header.codec in _SKIPPING else None
        for frame in self._decoded(skip):
            if frame.pts is None:
                continue
            self._position = frame.pts
            if frame.pts == pts:
                return frame if self._references.is_intact(frame) else None
            if frame.pts > pts:
                return None
        return None
