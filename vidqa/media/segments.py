"""Facts of a video -> its segments. A pure function."""

from __future__ import annotations

from vidqa.errors import MediaError
from vidqa.records import WHOLE, MediaFacts, Segment

#: Frame times are sums of fractions; a frame this close to a boundary belongs to the segment that starts there.
BOUNDARY_TOLERANCE_S = 1e-6
#: A month in windows of 25 s. A wrong duration in a header could ask for any number.
MAX_SEGMENTS = 100_000


def plan_segments(facts: MediaFacts, segments: float | tuple[Segment, ...] | None) -> tuple[Segment, ...]:
    """Split a video into segments of fixed length, or return the segments that the caller passes.

    Every segment contains the start of at least one frame: the duration of the last frame never adds a segment. The
    last segment keeps its nominal end, so cache keys do not depend on the precision of the duration.

    Args:
        facts: facts of the video. The segments are exact if its frames were counted, otherwise only as correct as the
            header.
        segments: length of a segment in seconds, the segments themselves, or None for one segment that covers the
            whole video. Images always have one segment.

    Returns:
        Segments in playing order, at least one. A video of unknown duration has one segment.

    Raises:
        ValueError: the length is not above 0.
        MediaError: `too_large`: the video has more than `MAX_SEGMENTS` segments.
    """
    if isinstance(segments, tuple):
        return (WHOLE,) if facts.kind == "image" else segments
    if segments is not None and not segments > 0:
        raise ValueError(f"the segment length must be above 0 seconds, got {segments}")
    if segments is None or facts.kind == "image":
        return (WHOLE,)
    last_frame_s = max(0.0, (facts.duration_s or 0.0) - (1.0 / facts.fps if facts.fps else 0.0))
    if last_frame_s / segments >= MAX_SEGMENTS:
        what = f"the video has {last_frame_s:.0f} s: more than {MAX_SEGMENTS:,} segments of {segments:g} s"
        raise MediaError("too_large", what, hint="longer segments (--segment)")
    n_segments = int((last_frame_s + BOUNDARY_TOLERANCE_S) / segments) + 1
    return tuple(Segment(round(i * segments, 6), round((i + 1) * segments, 6)) for i in range(n_segments))
