"""Open the container of a video safely, select its video stream, and read facts from header and first frame.

A frame count never overwrites what the header claims: the two have separate fields in `MediaFacts`. Duration and rate
are computed from the frame index once there is one.
"""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideType
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.color_matrix import color_notes
from vidqa.media.files import identify, native_path
from vidqa.media.frame_index.frame_index import FrameIndex
from vidqa.media.image_formats.heif import image_notes, read_heif
from vidqa.media.segments import find_pauses
from vidqa.media.sniff import Signature
from vidqa.media.workers.heartbeat import beat
from vidqa.records import MediaFacts

#: Maximum number of pixels in a frame. Accepts photos of 108 megapixels; rejects 16,384 x 16,384 before decoding.
MAX_PIXELS = 1 << 27

#: Demuxers that read one local file only: no playlists, scripts, image patterns, devices or network.
_DEMUXERS = (
    "mov,matroska,avi,asf,asf_o,flv,live_flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,obu,av1,ivf,ogg,rm,rv10,mxf,dv,nut,wtv,gxf,"
    "yuv4mpegpipe,nsv,smk,bink,roq,flic,film_cpk,4xm,dirac,dnxhd,vc1,vc1test,cavsvideo,avs2,avs3,mjpeg,mpjpeg,amv,swf,h261,h263,"
    "mp3,aac,ac3,eac3,flac,wav,w64,aiff,amr,caf,ape,wv,dts,truehd,tta,au,mmf,voc"
)
#: Formats that FFmpeg does not always recognize: streams of JPEG images.
_JPEG_STREAMS = ("mjpeg", "mpjpeg")
#: Streams without a container and without timestamps, which state their frame rate themselves, or not at all.
_RAW_STREAMS = ("h264", "hevc", "vvc")
#: Decoders that keep the alpha channel, by codec.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
#: Codecs of cover images and thumbnails. Cameras use some of them for video as well.
_IMAGE_CODECS = ("mjpeg", "png", "bmp", "gif", "tiff", "webp", "jpeg2000")
#: Number of consecutive EAGAIN results from a demuxer that are ignored.
_MAX_EMPTY_READS = 1000
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS}
#: Tags that are not UTF-8 must not make a file unreadable. PyAV 19 always accepts them and has no such argument.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@dataclass(frozen=True)
class OpenVideo:
    """An open container and its selected video stream."""

    path: str
    container: InputContainer
    stream: VideoStream
    codec: VideoCodecContext  # decoder of the stream; not always `stream.codec_context`
    signature: Signature

    @property
    def time_base(self) -> Fraction:
        """Time base of the stream: seconds per tick."""
        return as_fraction(self.stream.time_base) or Fraction(1, av.time_base)

    @property
    def demuxer(self) -> str:
        """FFmpeg's first name of the container, such as `mov` or `matroska`."""
        return self.container.format.name.split(",")[0]

    @property
    def file_duration_s(self) -> float | None:
        """Duration of the longest stream in seconds, stated or estimated; None if unknown."""
        return self.container.duration / av.time_base if self.container.duration else None

    @property
    def file_start_s(self) -> float:
        """Timestamp at which the first stream starts, in seconds."""
        return (self.container.start_time or 0) / av.time_base

    @property
    def average_rate(self) -> Fraction | None:
        """Average frame rate according to the header, in frames per second; None if unknown.

        FFmpeg takes 25 for raw streams, whose container states none; the rate inside the stream is better.
        """
        is_raw = self.demuxer in _RAW_STREAMS
        return as_fraction(self.stream.guessed_rate if is_raw else self.stream.average_rate)


@contextmanager
def open_video(path: str, signature: Signature | None = None) -> Iterator[OpenVideo]:
    """Open the container of a video, without access to any other file or to the network.

    Args:
        path: path of the file.
        signature: its signature if already determined.

    Raises:
        MediaError: the file cannot be opened or has no usable video stream.
    """
    signature = signature or identify(path)
    if signature.container == "heif":
        _check_heif(path)
    name_of_format = signature.container if signature.container in _JPEG_STREAMS else None
    with native_path(path) as name:
        try:
            container = av.open(f"file:{name}", format=name_of_format, options=_OPTIONS, **_ANY_METADATA)
        except av.error.FFmpegError as e:
            raise container_error(path, signature, e) from e
    with container:
        stream = select_video_stream(path, container)
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise too_large_error(path, codec.width, codec.height)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all  # do not read its packets
        codec = _alpha_decoder(path, stream) or codec
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        # Several files are decoded in parallel, so one thread each uses all cores; frame threads would also prevent
        # the decoder from skipping non-reference frames.
        codec.thread_count = 1
        yield OpenVideo(path, container, stream, codec, signature)


def _check_heif(path: str) -> None:
    """Refuse images of which FFmpeg would show hidden parts."""
    heif = read_heif(path)
    if heif.crop or heif.has_alpha:
        what = "a clean aperture" if heif.crop else "transparency"
        what = f"{display_path(path)}: HEIC images with {what} cannot be displayed correctly"
        raise MediaError("unsupported", what, hint="convert it to JPEG or PNG")


def _alpha_decoder(path: str, stream: VideoStream) -> VideoCodecContext | None:
    """Return a decoder that keeps the alpha channel of VP8 or VP9; None for other streams.

    FFmpeg's own decoders drop it and show the colors of transparent areas.
    """
    name = _ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if name is None or "1" not in (stream.metadata.get(key) for key in ("alpha_mode", "ALPHA_MODE")):
        return None
    try:
        codec = av.Codec(name, "r").create("video")
    except av.codec.codec.UnknownCodecError as e:
        what = f"{display_path(path)}: this installation of FFmpeg cannot decode transparent video ({name} is missing)"
        raise MediaError("unsupported", what) from e
    codec.width, codec.height = stream.codec_context.width, stream.codec_context.height
    return codec


def select_video_stream(path: str, container: InputContainer) -> VideoStream:
    """Return the stream that a player shows: the default video stream, ignoring cover images and thumbnails.

    Containers other than MP4 and Matroska attachments do not mark them, so a stream of images is used only if there is
    no other. A stream without frames comes last: one that was announced but never recorded.

    Args:
        path: path of the file, for error messages.
        container: the open container.

    Raises:
        MediaError: no_video, unsupported, unreadable.
    """
    not_shown = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
    shown = [s for s in container.streams.video if not s.disposition & not_shown]
    tiled = any(s.disposition & Disposition.dependent for s in container.streams.video)
    if tiled and not any(s.disposition & Disposition.default for s in shown):  # the remaining stream is a thumbnail
        raise MediaError("unsupported", f"{display_path(path)}: tiled image", hint="convert it to JPEG or PNG")
    if not shown:
        if not container.streams:
            raise MediaError("unreadable", f"{display_path(path)}: the container has no streams")
        kinds = ", ".join(
            sorted({"cover image" if s.type == "video" else s.type or "unknown" for s in container.streams})
        )
        raise MediaError("no_video", f"{display_path(path)}: no video stream, only {kinds}")
    stream = min(shown, key=_preference)
    if stream.codec_context is None:
        raise MediaError(
            "unsupported", f"{display_path(path)}: no decoder for stream {stream.index}, or it is encrypted"
        )
    return stream


def _preference(stream: VideoStream) -> tuple[bool | int, ...]:
    """Return a sort key for streams that may be shown, best first."""
    codec = stream.codec_context
    is_empty = codec is not None and codec.pix_fmt is None  # FFmpeg found no frame while opening the file
    are_images = codec is not None and codec.codec.canonical_name in _IMAGE_CODECS
    return is_empty, stream.frames == 1, are_images, not stream.disposition & Disposition.default, stream.index


def read_packets(video: OpenVideo) -> Iterator[Packet]:
    """Yield the packets of the video stream from the current position.

    FFmpeg's MPEG-TS demuxer may return EAGAIN in the middle of a damaged stream; reading then continues.

    Args:
        video: the open video.

    Raises:
        av.error.FFmpegError: the file cannot be read any further.
    """
    n_empty = 0
    while True:
        try:
            for packet in video.container.demux(video.stream):
                n_empty = 0
                beat()
                yield packet
            return
        except av.error.BlockingIOError:
            n_empty += 1
            if n_empty > _MAX_EMPTY_READS:
                raise
        except IndexError:  # at the end PyAV flushes all streams, but fails for those that started later
            return


def decode_first_frame(video: OpenVideo, on_packet: Callable[[Packet], None] | None = None) -> VideoFrame:
    """Decode up to the first frame.

    Args:
        video: an open video, positioned at its first packet. Afterwards it is positioned after the packets that the
            first frame needed.
        on_packet: called with every packet that is read on the way.

    Raises:
        MediaError: encrypted, unreadable, unsupported, out_of_memory.
    """
    n_failed, cause = 0, None
    try:
        for packet in read_packets(video):
            if on_packet is not None:
                on_packet(packet)
            if packet.has_sidedata("encryption_info"):
                raise MediaError("encrypted", f"{display_path(video.path)}: the video stream is encrypted")
            try:
                for frame in video.codec.decode(packet):
                    return frame
            except av.error.InvalidDataError as e:  # a damaged start; a later keyframe may be intact
                n_failed, cause = n_failed + 1, e
    except av.error.FFmpegError as e:
        raise decode_error(video.path, e) from e
    raise MediaError(
        "unreadable", f"{display_path(video.path)}: no frame can be decoded ({n_failed} damaged packets)"
    ) from cause


def facts_from_header(video: OpenVideo, frame: VideoFrame) -> MediaFacts:
    """Return the facts that the container header and the first frame state.

    Args:
        video: the open video.
        frame: its first frame, as decoded.

    Returns:
        Facts with the display size (upright, square pixels) and without a frame count.

    Raises:
        MediaError: too_large.
    """
    stream, container = video.stream, video.container
    rotation_deg, _ = orientation(frame)
    aspect = pixel_aspect(stream)
    width, height = display_size(frame.width, frame.height, aspect, rotation_deg)
    if width * height > MAX_PIXELS:
        raise too_large_error(video.path, width, height)
    duration = stream.duration * video.time_base if stream.duration and stream.time_base else None
    if duration is None and container.duration:
        duration = Fraction(container.duration, av.time_base)
    rate = video.average_rate or as_fraction(stream.guessed_rate)
    is_image = video.signature.family == "image" and (stream.frames or 1) == 1
    return MediaFacts(
        kind="image" if is_image else "video",
        codec=stream.codec_context.codec.canonical_name,
        width=width,
        height=height,
        duration_s=None if is_image or duration is None else float(duration),
        fps=None if is_image or not rate else float(rate),
        rotation_deg=rotation_deg,
        pixel_aspect=aspect,
        notes=(image_notes(video.path) if is_image and video.signature.container == "heif" else ())
        + color_notes(frame),
        n_frames_from_header=stream.frames or None,
        stream_index=stream.index,
    )


def facts_from_index(video: OpenVideo, header: MediaFacts, index: FrameIndex) -> MediaFacts:
    """Complete the header's facts with frame count, duration and rate from the frame index.

    Args:
        video: the open video.
        header: facts from the header. `n_frames_from_header` keeps its value.
        index: the frame index of the same stream.
    """
    if header.kind == "image":
        return replace(header, n_frames_from_content=len(index))
    pts_s = index.pts_s
    duration: float | None = index.duration_s
    if len(index) == 1 and not index.last_duration:
        duration = header.duration_s
    elif header.duration_s and video.demuxer == "mov":
        # An edit list may end in the middle of a frame. Smaller differences are due to rounding.
        is_cut = pts_s[-1] < header.duration_s < index.duration_s - 0.5 * index.frame_s
        duration = header.duration_s if is_cut else duration
    return replace(
        header,
        n_frames_from_content=len(index),
        duration_s=duration,
        fps=index.rate,
        last_frame_s=float(pts_s[-1]),
        pauses=find_pauses(pts_s),
    )


def as_fraction(value: Any) -> Fraction | None:
    """Return a rational number of PyAV as a Fraction; None if it is not set.

    PyAV 18 returns a Fraction, or None. PyAV 19 returns an `av.AVRational`, whose arithmetic is rounded to 32 bits, and
    a false value such as 0/1 if it is not set.
    """
    return Fraction(value) if value else None


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Return width / height of a stored pixel; 1 if unknown or implausible."""
    aspect = as_fraction(stream.sample_aspect_ratio)
    return aspect if aspect and Fraction(1, 8) <= aspect <= 8 else Fraction(1)


def display_size(width: int, height: int, aspect: Fraction, rotation_deg: int) -> tuple[int, int]:
    """Return (width, height) in square pixels after a clockwise rotation by `rotation_deg`."""
    width = max(1, round(width * aspect))
    return (height, width) if rotation_deg in (90, 270) else (width, height)


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """Read from the display matrix how a stored frame becomes upright.

    Args:
        frame: a decoded frame. Its matrix maps (x, y) to (a x + c y, b x + d y) with y pointing down; a determinant
            below 0 means mirrored.

    Returns:
        The clockwise rotation in degrees (0, 90, 180 or 270), and whether the frame has to be mirrored horizontally
        before the rotation (front cameras).
    """
    try:
        side_data: Mapping[Any, Any] = frame.side_data  # PyAV 18 annotates it with other keys than it has
    except ValueError:  # side data that PyAV does not support, such as EXIF; only the rotation is available then
        return round(-frame.rotation / 90) * 90 % 360, False
    side = side_data.get(SideType.DISPLAYMATRIX)
    if side is None:
        return 0, False
    a, b, _, c, d = struct.unpack_from("<5i", bytes(side))
    mirrored = a * d - b * c < 0
    sign = -1 if mirrored else 1
    return round(math.degrees(math.atan2(sign * b, sign * a)) / 90) * 90 % 360, mirrored


def too_large_error(path: str, width: int, height: int) -> MediaError:
    """Return the error for a frame with more than `MAX_PIXELS` pixels."""
    return MediaError(
        "too_large", f"{display_path(path)}: frames of {width} x {height} exceed the limit of {MAX_PIXELS} pixels"
    )


def container_error(path: str, signature: Signature, error: av.error.FFmpegError) -> MediaError:
    """Convert an FFmpeg error that occurred while opening a file to a MediaError."""
    if error.errno == errno.ENOMEM:
        return MediaError("out_of_memory", f"{display_path(path)}: not enough memory to open the file")
    if isinstance(error, av.error.ArgumentError):
        return MediaError("unsupported", f"{display_path(path)}: unsupported container ({signature.container})")
    kind = "not_media" if signature.family == "unknown" else "no_video" if signature.family == "audio" else "unreadable"
    return MediaError(kind, f"{display_path(path)}: the container cannot be read: {error.strerror}")


def decode_error(path: str, error: av.error.FFmpegError) -> MediaError:
    """Convert an FFmpeg error that occurred while reading or decoding a stream to a MediaError."""
    if error.errno == errno.ENOMEM:
        return MediaError("out_of_memory", f"{display_path(path)}: not enough memory to decode")
    unsupported = isinstance(error, (av.error.DecoderNotFoundError, av.error.PatchWelcomeError))
    what = f"{display_path(path)}: cannot be decoded: {error.strerror}"
    return MediaError("unsupported" if unsupported else "unreadable", what)
