"""Path -> decoded frames of its segments. This is the entry point to all backends.

`auto` uses PyAV and falls back to decord. PyAV is faster and was correct for every file tested: it skips non-reference
frames, while decord 0.6 decodes all frames, ignores the pixel aspect ratio and counts fields as frames (measurements:
tools/bench_decode.py). decord is used if PyAV can open a file but not decode it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import takewhile
from typing import Literal, Protocol

import numpy as np

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.files import identify
from vidqa.media.frame_index.frame_index import IndexMismatchError, IndexSource
from vidqa.media.frame_sampling import frame_indices
from vidqa.media.segments import BOUNDARY_TOLERANCE_S, plan_segments
from vidqa.media.workers.heartbeat import beat
from vidqa.records import DecodedMedia, DecodedSegment, EncoderInput, FrameBatch, MediaFacts, SamplingSpec, Segment

Backend = Literal["auto", "pyav", "decord"]
Transform = Callable[[FrameBatch], EncoderInput]


class FrameReader(AbstractContextManager["FrameReader"], Protocol):
    """Interface of a backend: facts with counted frames, the time of every frame, and frames by index."""

    backend: str
    facts: MediaFacts
    pts_s: np.ndarray  # float64 [N]; seconds from the first frame

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames in the order of `indices`: uint8 RGB [H, W, 3], upright, square pixels."""
        ...


def open_reader(path: str, backend: Backend = "auto", *, index_source: IndexSource = "container") -> FrameReader:
    """Open a file to read frames by index.

    Args:
        path: path of the file.
        backend: `auto` opens videos with PyAV; tests and benchmarks may name a backend. Images are always read by
            Pillow, except HEIC, which only FFmpeg can read.
        index_source: first source to try for the frame index, see `PyavReader`. decord never uses `container`.

    Raises:
        MediaError: no frame can be decoded; `kind` is the reason.
    """
    signature = identify(path)
    if signature.family == "image" and signature.container != "heif":
        from vidqa.media.backends.image import ImageReader

        return ImageReader(path)
    from vidqa.media.backends.pyav import PyavReader

    if backend == "decord" and index_source == "container":
        index_source = "packets"
    reader = PyavReader(path, signature, index_source=index_source)
    if backend != "decord":
        return reader
    from vidqa.media.backends.decord import DecordReader

    return DecordReader(reader)


def decode(
    path: str,
    segments: float | tuple[Segment, ...] | None = None,
    image: SamplingSpec | None = None,
    video: SamplingSpec | None = None,
    backend: Backend = "auto",
    *,
    transform: Transform | None = None,
) -> DecodedMedia:
    """Decode the sampled frames of every segment of a file.

    Args:
        path: as for `decode_parts`, like all other arguments.
        segments: length of a segment in seconds, the segments themselves, or None for the whole video.
        image: sampling of an image.
        video: sampling of each segment of a video.
        backend: `auto`, `pyav` or `decord`.
        transform: applied to each segment.

    Returns:
        Facts with counted frames, and at least one segment.

    Raises:
        MediaError: no frame can be decoded; `kind` is the reason.
    """
    return join_parts(list(decode_parts(path, segments, image, video, backend, transform=transform)))


def join_parts(parts: Sequence[DecodedMedia]) -> DecodedMedia:
    """Return the parts of one file as a whole.

    Args:
        parts: all parts, in the order in which they were decoded.
    """
    segments = tuple(segment for part in parts for segment in part.segments)
    return replace(parts[-1], segments=segments, seconds=sum(part.seconds for part in parts))


def decode_parts(
    path: str,
    segments: float | tuple[Segment, ...] | None = None,
    image: SamplingSpec | None = None,
    video: SamplingSpec | None = None,
    backend: Backend = "auto",
    *,
    transform: Transform | None = None,
    skip: Collection[Segment] = (),
) -> Iterator[DecodedMedia]:
    """Decode the sampled frames of a file, and yield each segment as soon as it is decoded.

    Args:
        path: path of a video or image.
        segments: length of a segment in seconds, the segments themselves, or None for one segment that covers the
            whole video.
        image: sampling of an image; None means one frame. Any other sampling repeats the image like a video of one
            frame.
        video: sampling of each segment of a video; None means 8 frames, both ends included.
        backend: `auto` uses PyAV, then decord if PyAV fails; see `open_reader`.
        transform: applied to each segment as soon as it is decoded, so that full-size frames of only one segment are
            in memory at a time.
        skip: segments that are not needed.

    Yields:
        Parts of one segment each, in playing order. `is_last` marks the last part, which has no segment if none is
        left to decode.

    Raises:
        MediaError: no further frame can be decoded; `kind` is the reason. Earlier parts are valid.
    """
    started = time.perf_counter()
    sampling = video or SamplingSpec()
    done = set(skip)
    has_windows = not isinstance(segments, tuple)
    earlier: MediaFacts | None = None  # facts of the attempt before, whose windows up to `decoded_s` are done
    decoded_s = 0.0

    def attempt(name: Backend, index_source: IndexSource) -> Iterator[DecodedMedia]:
        nonlocal started, earlier, decoded_s
        with open_reader(path, name, index_source=index_source) as reader:
            earlier = facts = _continued(earlier, reader.facts, decoded_s) if earlier else reader.facts
            planned = tuple(dict.fromkeys(plan_segments(facts, segments)))  # each once, also if a caller repeats one
            if has_windows:
                decoded_s = max((s.end_s or 0.0 for s in takewhile(done.__contains__, planned)), default=0.0)
            n_left = sum(segment not in done for segment in planned)
            part = DecodedMedia(facts, (), reader.backend, time.perf_counter() - started, planned)
            if not n_left:  # an earlier attempt decoded all segments of this plan
                yield part
            for segment in _decode_segments(reader, planned, has_windows, image, sampling, transform, done):
                n_left -= 1
                seconds = time.perf_counter() - started
                done.add(segment.segment)
                if has_windows:
                    decoded_s = segment.segment.end_s or 0.0  # the segments are in playing order
                yield replace(part, segments=(segment,), seconds=seconds, is_last=not n_left)
                started = time.perf_counter()

    fast_sources: tuple[IndexSource, ...] = ("container", "packets")
    for index_source in fast_sources:
        try:
            yield from attempt(backend, index_source)
            return
        except IndexMismatchError:
            pass
    try:
        yield from attempt(backend, "decoding")
    except (IndexMismatchError, MediaError) as e:
        if backend == "auto":
            try:
                yield from attempt("decord", "packets")
                return
            except MediaError:
                pass  # the error of the first backend is more informative
        if isinstance(e, MediaError):
            raise
        raise MediaError("unreadable", f"{display_path(path)}: decoding does not return the same frames twice") from e


def _continued(earlier: MediaFacts, facts: MediaFacts, decoded_s: float) -> MediaFacts:
    """Return facts whose plan has the same windows as an earlier plan up to `decoded_s`, and its own windows after it.

    Damage may be found after some windows were decoded. Without this, a new plan could overlap them or leave a gap.

    Args:
        earlier: facts of the earlier plan.
        facts: facts of the file as it is read now.
        decoded_s: end of the last window that was decoded in the earlier plan, in seconds; 0 if there is none.
    """
    if not decoded_s:
        return facts
    before = [(a, min(b, decoded_s)) for a, b in earlier.pauses if a < decoded_s]
    after = [(max(a, decoded_s), b) for a, b in facts.pauses if b > decoded_s]
    last_frame_s = facts.duration_s or 0.0 if facts.last_frame_s is None else facts.last_frame_s
    if last_frame_s < decoded_s:  # nothing is left: the windows end at `decoded_s`
        after, last_frame_s = [], decoded_s - 2 * BOUNDARY_TOLERANCE_S
    return replace(facts, pauses=(*before, *after), last_frame_s=last_frame_s)


def _decode_segments(
    reader: FrameReader,
    planned: Sequence[Segment],
    has_windows: bool,
    image: SamplingSpec | None,
    video: SamplingSpec,
    transform: Transform | None,
    skip: Collection[Segment],
) -> Iterator[DecodedSegment]:
    facts, pts_s = reader.facts, reader.pts_s
    video_end_s = max(facts.duration_s or 0.0, float(pts_s[-1]))
    sampling = video if facts.kind == "video" else image or SamplingSpec("linspace", 1)
    for segment in planned:
        if segment in skip:
            continue
        indices, repeated = select_frames(pts_s, segment, sampling, facts.fps)
        batch = _read_batch(reader, indices, repeated)
        end = video_end_s if segment.end_s is None else min(segment.end_s, video_end_s)
        if has_windows and segment is planned[-1]:
            end = video_end_s  # also if the last frame is shown for longer than a window
        yield DecodedSegment(
            segment, segment.start_s, max(end, segment.start_s), transform(batch) if transform else batch
        )


def select_frames(
    pts_s: np.ndarray, segment: Segment, sampling: SamplingSpec, fps: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames to decode for a segment. A pure function.

    A segment in which no frame starts shows the last frame before it.

    Args:
        pts_s: float64 [N], pts of all frames of the video in seconds.
        segment: the segment. A frame belongs to the segment in which it starts.
        sampling: which frames of the segment.
        fps: average frame rate of the video in frames per second.

    Returns:
        Indices into `pts_s`, int64 [T]; and `repeated`, bool [T], as in `FrameBatch`.
    """
    first = int(np.searchsorted(pts_s, segment.start_s - BOUNDARY_TOLERANCE_S, side="left"))
    last = len(pts_s)
    if segment.end_s is not None:
        last = int(np.searchsorted(pts_s, segment.end_s - BOUNDARY_TOLERANCE_S, side="left"))
    held = last <= first
    if held:
        first, last = max(0, last - 1), max(1, last)
    indices, repeated = frame_indices(last - first, sampling, fps, pts_s[first:last])
    return np.asarray(indices, np.int64) + first, np.asarray(repeated, np.bool_) | held


def _read_batch(reader: FrameReader, indices: np.ndarray, repeated: np.ndarray) -> FrameBatch:
    """Decode each distinct frame once and write it straight into the batch."""
    distinct, inverse = np.unique(indices, return_inverse=True)
    pixels = np.empty((len(indices), reader.facts.height, reader.facts.width, 3), np.uint8)
    for n, frame in enumerate(reader.frames([int(i) for i in distinct])):
        beat()
        pixels[inverse == n] = frame
    return FrameBatch(pixels, reader.pts_s[indices].astype(np.float64), repeated, reader.facts.kind)
