"""Path -> segments with their frames: the one entrance to both backends. Does not know processes.

`auto` is PyAV with decord behind it. PyAV is the faster one and the one that is right for every file that was tried:
it skips pictures that nothing refers to, decord 0.6 decodes them all, misses pixel aspect and counts fields as frames
(figures: tools/bench_decode.py). decord takes over where PyAV opens a file but fails to decode it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import numpy as np

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.files import identify
from vidqa.media.frame_index.from_packets import IndexMismatchError, Trusted
from vidqa.media.frame_sampling import frame_indices
from vidqa.media.segments import BOUNDARY_TOLERANCE_S, plan_segments
from vidqa.records import DecodedMedia, DecodedSegment, EncoderInput, FrameBatch, MediaFacts, SamplingSpec, Segment

Backend = Literal["auto", "pyav", "decord"]
Transform = Callable[[FrameBatch], EncoderInput]


class Reader(AbstractContextManager["Reader"], Protocol):
    """What a backend gives: facts after counting, the time of every frame, and frames by index."""

    backend: str
    facts: MediaFacts
    pts_s: np.ndarray  # float64 [N]; seconds from the first frame

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield uint8 RGB [H, W, 3], upright, square pixels, in the order of `indices`."""
        ...


def open_reader(path: str, backend: Backend = "auto", *, trusted: Trusted = "list") -> Reader:
    """Open a file for reading frames by index.

    Args:
        path: of the file.
        backend: `auto` unless a test or a measurement wants one of them. Pictures are read by Pillow in any case.
        trusted: what tells which frames a video has; see `PyavReader`. decord asks the packets.

    Raises:
        MediaError: no frame can be had; the kind says why.
    """
    signature = identify(path)
    if signature.family == "image" and signature.container != "heif":
        from vidqa.media.backends.image import ImageReader

        return ImageReader(path)
    from vidqa.media.backends.pyav import PyavReader

    if backend == "decord" and trusted == "list":
        trusted = "packets"
    reader = PyavReader(path, signature, trusted=trusted)
    if backend != "decord":
        return reader
    from vidqa.media.backends.decord import DecordReader

    return DecordReader(reader)


def decode(
    path: str,
    seconds: float | tuple[Segment, ...] | None = None,
    image: SamplingSpec | None = None,
    video: SamplingSpec | None = None,
    backend: Backend = "auto",
    *,
    transform: Transform | None = None,
) -> DecodedMedia:
    """Decode the frames that a model looks at.

    Args:
        path: of a video or a picture.
        seconds: length of a segment, or the segments; None means one segment, the whole clip.
        image: how a still is shown; None means one frame. With a sampling rule it is a clip of one frame, repeated.
        video: which frames of each segment of a video; None means 8 frames, both ends included.
        backend: see `open_reader`.
        transform: applied to each segment as soon as it is decoded, so that full frames of one segment are held at a
            time.

    Returns:
        Facts (counted ones win over the header's) and at least one segment.

    Raises:
        MediaError: no frame can be had; the kind says why.
    """
    began = time.perf_counter()
    sampling = video or SamplingSpec()

    def attempt(name: Backend, trusted: Trusted) -> DecodedMedia:
        with open_reader(path, name, trusted=trusted) as reader:
            segments = tuple(_segments(reader, seconds, image, sampling, transform))
            return DecodedMedia(reader.facts, segments, reader.backend, time.perf_counter() - began)

    by_trust: tuple[Trusted, ...] = ("list", "packets")
    for trusted in by_trust:
        try:
            return attempt(backend, trusted)
        except IndexMismatchError:
            pass
    try:
        return attempt(backend, "decoding")
    except (IndexMismatchError, MediaError) as e:
        if backend == "auto":
            try:
                return attempt("decord", "packets")
            except MediaError:
                pass  # the first backend's reason is the better one
        if isinstance(e, MediaError):
            raise
        raise MediaError("unreadable", f"{display_path(path)}: frames come out differently each time") from e


def _segments(
    reader: Reader,
    seconds: float | tuple[Segment, ...] | None,
    image: SamplingSpec | None,
    video: SamplingSpec,
    transform: Transform | None,
) -> Iterator[DecodedSegment]:
    facts, pts_s = reader.facts, reader.pts_s
    end_of_clip = max(facts.duration_s or 0.0, float(pts_s[-1]))
    sampling = video if facts.kind == "video" else image or SamplingSpec("linspace", 1)
    for segment in plan_segments(facts, seconds):
        indices, repeated = pick(pts_s, segment, sampling, facts.fps)
        batch = _read(reader, indices, repeated)
        end = end_of_clip if segment.end_s is None else min(segment.end_s, end_of_clip)
        yield DecodedSegment(
            segment, segment.start_s, max(end, segment.start_s), transform(batch) if transform else batch
        )


def pick(
    pts_s: np.ndarray, segment: Segment, sampling: SamplingSpec, fps: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a segment, by index in the whole clip. Pure.

    A window in which no frame begins shows the frame that stands on the screen all the while.

    Args:
        pts_s: float64 [N], times of all frames of the clip in seconds.
        segment: the window; frames belong to it by the time at which they begin.
        sampling: which of its frames.
        fps: average rate of the clip in frames per second.

    Returns:
        int64 [T] indices and bool [T] repeated.
    """
    first = int(np.searchsorted(pts_s, segment.start_s - BOUNDARY_TOLERANCE_S, side="left"))
    last = (
        len(pts_s)
        if segment.end_s is None
        else int(np.searchsorted(pts_s, segment.end_s - BOUNDARY_TOLERANCE_S, side="left"))
    )
    held = last <= first
    if held:
        first, last = max(0, last - 1), max(1, last)
    indices, repeated = frame_indices(last - first, sampling, fps, pts_s[first:last])
    return np.asarray(indices, np.int64) + first, np.asarray(repeated, np.bool_) | held


def _read(reader: Reader, indices: np.ndarray, repeated: np.ndarray) -> FrameBatch:
    """Each frame is decoded once and written straight into the batch."""
    different, place = np.unique(indices, return_inverse=True)
    pixels = np.empty((len(indices), reader.facts.height, reader.facts.width, 3), np.uint8)
    for n, frame in enumerate(reader.frames([int(i) for i in different])):
        pixels[place == n] = frame
    return FrameBatch(pixels, reader.pts_s[indices].astype(np.float64), repeated, reader.facts.kind)
