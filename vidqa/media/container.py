"""Path -> open container of a video, its picture stream, and the facts that header and first frame give.

What the header says and what was counted stay apart; a count replaces the header's duration and rate, never its own
field. Does not sample.
"""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction

import av
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideType
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.files import identify, native_path
from vidqa.media.frame_index.from_packets import FrameIndex
from vidqa.media.sniff import Signature
from vidqa.records import MediaFacts

#: Pixels of a frame. Lets a photo of 108 megapixels pass and stops 16,384 x 16,384 before anything is decoded.
MAX_PIXELS = 1 << 27

#: Demuxers that read one local file and nothing else: no playlists, scripts, image patterns, devices or network.
_DEMUXERS = (
    "mov,matroska,avi,asf,asf_o,flv,live_flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,obu,av1,ivf,ogg,rm,rv10,mxf,dv,nut,wtv,gxf,"
    "yuv4mpegpipe,nsv,smk,bink,roq,flic,film_cpk,4xm,dirac,dnxhd,vc1,vc1test,cavsvideo,avs2,avs3,mjpeg,amv,swf,h261,h263,"
    "mp3,aac,ac3,eac3,flac,wav,w64,aiff,amr,caf,ape,wv,dts,truehd,tta,au,mmf,voc"
)
#: Times that a reader may ask to try again with no packet in between.
_MOST_IN_VAIN = 1000
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS}


@dataclass(frozen=True)
class OpenVideo:
    """An open container and the stream that is the picture."""

    path: str
    container: InputContainer
    stream: VideoStream
    signature: Signature

    @property
    def time_base(self) -> Fraction:
        """Seconds in a tick of the stream's clock."""
        return Fraction(self.stream.time_base or Fraction(1, av.time_base))


@contextmanager
def open_video(path: str, signature: Signature | None = None) -> Iterator[OpenVideo]:
    """Open the container of a video safely: this one local file, no other.

    Raises:
        MediaError: whatever keeps the file from being read.
    """
    signature = signature or identify(path)
    with native_path(path) as name:
        try:
            container = av.open(f"file:{name}", options=_OPTIONS, metadata_errors="replace")
        except av.error.FFmpegError as e:
            raise container_error(path, signature, e) from e
    with container:
        stream = select_video_stream(path, container)
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise too_large_error(path, codec.width, codec.height)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all  # its packets need not be read
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        codec.thread_count = (
            1  # files are decoded side by side; one thread each wastes nothing, and lets frames be skipped
        )
        yield OpenVideo(path, container, stream, signature)


def select_video_stream(path: str, container: InputContainer) -> VideoStream:
    """The stream a viewer is shown: the default one; cover pictures are no video.

    Raises:
        MediaError: no_video, unsupported.
    """
    not_shown = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
    shown = [s for s in container.streams.video if not s.disposition & not_shown]
    tiled = any(s.disposition & Disposition.dependent for s in container.streams.video)
    if tiled and not any(s.disposition & Disposition.default for s in shown):  # what is left is a thumbnail
        raise MediaError(
            "unsupported", f"{display_path(path)}: a picture made of tiles", hint="convert it to JPEG or PNG"
        )
    if not shown:
        if not container.streams:
            raise MediaError("unreadable", f"{display_path(path)}: a container without streams")
        kinds = ", ".join(sorted({s.type or "unknown" for s in container.streams}))
        raise MediaError("no_video", f"{display_path(path)}: no video stream, only {kinds}")
    stream = min(shown, key=lambda s: (s.frames == 1, not s.disposition & Disposition.default, s.index))
    if stream.codec_context is None:
        raise MediaError("unsupported", f"{display_path(path)}: no decoder for stream {stream.index}")
    return stream


def read_packets(opened: OpenVideo) -> Iterator[Packet]:
    """Packets of the picture from here on.

    FFmpeg's reader of transport streams may say "try again" in the midst of a damaged one; what follows is read then.

    Raises:
        av.error.FFmpegError: the file cannot be read on.
    """
    n_in_vain = 0
    while True:
        try:
            for packet in opened.container.demux(opened.stream):
                n_in_vain = 0
                yield packet
            return
        except av.error.BlockingIOError:
            n_in_vain += 1
            if n_in_vain > _MOST_IN_VAIN:
                raise


def decode_first_frame(opened: OpenVideo, seen: Callable[[Packet], None] | None = None) -> VideoFrame:
    """Decode up to the first picture.

    Args:
        opened: at its first packet; behind the first video packets afterwards.
        seen: hears of every packet of the stream that was read on the way.

    Raises:
        MediaError: encrypted, too_large, unreadable.
    """
    n_failed, why = 0, None
    try:
        for packet in read_packets(opened):
            if seen is not None:
                seen(packet)
            if packet.has_sidedata("encryption_info"):
                raise MediaError("encrypted", f"{display_path(opened.path)}: the video stream is encrypted")
            try:
                for frame in packet.decode():
                    return frame
            except av.error.InvalidDataError as e:  # a damaged start; the next keyframe may be whole
                n_failed, why = n_failed + 1, e
    except av.error.FFmpegError as e:
        raise decode_error(opened.path, e) from e
    raise MediaError(
        "unreadable", f"{display_path(opened.path)}: no frame can be decoded ({n_failed} damaged packets)"
    ) from why


def facts_from_header(opened: OpenVideo, frame: VideoFrame) -> MediaFacts:
    """What container and first frame say. Sizes are as displayed."""
    stream, container = opened.stream, opened.container
    turn, _ = orientation(frame)
    aspect = pixel_aspect(stream)
    width, height = display_size(frame.width, frame.height, aspect, turn)
    if width * height > MAX_PIXELS:
        raise too_large_error(opened.path, width, height)
    duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
    if duration is None and container.duration:
        duration = Fraction(container.duration, av.time_base)
    rate = stream.average_rate or stream.guessed_rate
    still = opened.signature.family == "image" and (stream.frames or 1) == 1
    return MediaFacts(
        kind="image" if still else "video",
        codec=stream.codec_context.codec.canonical_name,
        width=width,
        height=height,
        duration_s=None if still or duration is None else float(duration),
        fps=None if still or not rate else float(rate),
        rotation_deg=turn,
        pixel_aspect=aspect,
        n_frames_from_header=stream.frames or None,
        stream_index=stream.index,
    )


def facts_from_index(header: MediaFacts, index: FrameIndex) -> MediaFacts:
    """Facts after counting: count, duration and rate of the content; what the header claimed keeps its field."""
    if header.kind == "image":
        return replace(header, n_frames_from_content=len(index))
    duration = header.duration_s if len(index) == 1 and not index.last_duration else index.duration_s
    return replace(header, n_frames_from_content=len(index), duration_s=duration, fps=index.rate)


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width by height of a stored pixel; 1 where unknown or beyond belief."""
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if aspect and Fraction(1, 8) <= aspect <= 8 else Fraction(1)


def display_size(width: int, height: int, aspect: Fraction, turn: int) -> tuple[int, int]:
    """Size in square pixels after turning by `turn` degrees."""
    width = max(1, round(width * aspect))
    return (height, width) if turn in (90, 270) else (width, height)


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """How a stored frame becomes upright.

    Returns:
        Clockwise turn in degrees (0, 90, 180, 270), and whether the frame is to be mirrored left to right before it
        (front cameras). The display matrix maps (x, y) to (a x + c y, b x + d y), y downwards; mirrored means a
        determinant below 0.
    """
    side = frame.side_data.get(SideType.DISPLAYMATRIX)  # type: ignore[call-overload]
    if side is None:
        return 0, False
    a, b, _, c, d = struct.unpack_from("<5i", bytes(side))
    mirrored = a * d - b * c < 0
    sign = -1 if mirrored else 1
    return round(math.degrees(math.atan2(sign * b, sign * a)) / 90) * 90 % 360, mirrored


def too_large_error(path: str, width: int, height: int) -> MediaError:
    """A frame beyond the limit."""
    return MediaError(
        "too_large", f"{display_path(path)}: {width} x {height} pixels in a frame, the limit is {MAX_PIXELS} pixels"
    )


def container_error(path: str, signature: Signature, error: av.error.FFmpegError) -> MediaError:
    """What FFmpeg said on opening, as a row can carry it."""
    if error.errno == errno.ENOMEM:
        return MediaError("out_of_memory", f"{display_path(path)}: not enough memory to open the file")
    if isinstance(error, av.error.ArgumentError):
        return MediaError(
            "unsupported", f"{display_path(path)}: a container that is not read here ({signature.container})"
        )
    kind = "not_media" if signature.family == "unknown" else "no_video" if signature.family == "audio" else "unreadable"
    return MediaError(kind, f"{display_path(path)}: the container cannot be read: {error.strerror}")


def decode_error(path: str, error: av.error.FFmpegError) -> MediaError:
    """What FFmpeg said on reading or decoding, as a row can carry it."""
    if error.errno == errno.ENOMEM:
        return MediaError("out_of_memory", f"{display_path(path)}: not enough memory to decode")
    unsupported = isinstance(error, (av.error.DecoderNotFoundError, av.error.PatchWelcomeError))
    what = f"{display_path(path)}: cannot be decoded: {error.strerror}"
    return MediaError("unsupported" if unsupported else "unreadable", what)
