"""Facts of a video -> its segments. Pure functions.

Windows are multiples of the segment length, but a window in which no frame starts would only show the frame before it
once more. It is joined to the window before, so a long pause costs one row, and the windows still cover every second:

    frames    a b c                 d         e f
    windows   |-----|-----|-----|-----|-----|-----|
    segments  |-----------------|-----------|-----|

Segments are also planned for videos that are not decoded again, to find their features in the cache. So the facts of a
video contain what the plan needs: the pts of the last frame, and the pauses.
"""

from __future__ import annotations

import sys

import numpy as np

from vidqa.errors import MediaError
from vidqa.records import WHOLE, MediaFacts, Segment

#: Frame times are sums of fractions; a frame this close to a boundary belongs to the segment that starts there.
BOUNDARY_TOLERANCE_S = 1e-6
#: A month in windows of 25 s. A wrong duration in a header could ask for any number.
MAX_SEGMENTS = 100_000
#: Frames shown for longer than this are pauses. Shorter windows than this are not joined.
_MIN_PAUSE_S = 1.0
#: Maximum number of pauses in the facts of a video. If there are more, only the longest ones count.
_MAX_PAUSES = 1000


def find_pauses(pts_s: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Return the pts of frames that are shown for longer than a second, each with the pts of the next frame.

    Args:
        pts_s: float64 [N], pts of all frames in seconds, ascending.
    """
    steps = np.diff(pts_s)
    shortest = _MIN_PAUSE_S
    if np.count_nonzero(steps > shortest) > _MAX_PAUSES:  # a time-lapse; of equally long pauses all count, or none
        shortest = float(np.sort(steps)[-_MAX_PAUSES - 1])
    return tuple((float(pts_s[i]), float(pts_s[i + 1])) for i in np.flatnonzero(steps > shortest))


def plan_segments(facts: MediaFacts, segments: float | tuple[Segment, ...] | None) -> tuple[Segment, ...]:
    """Split a video into windows, or return the segments that the caller passes.

    The windows cover the times at which frames start: the duration of the last frame never adds a window. The last
    window keeps its nominal end, so cache keys do not depend on the precision of the duration.

    Args:
        facts: facts of the video. The segments are exact if its frames were counted, otherwise only as correct as the
            header.
        segments: length of a window in seconds, the segments themselves, or None for one segment that covers the
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
    runs: list[range] = []  # numbers of the windows in which a frame starts
    following = 0
    for held_s, next_s in facts.pauses:
        last = _window(held_s, segments)
        runs.append(range(following, last + 1))
        following = max(_window(next_s, segments), last + 1)
    last_frame_s = _last_frame_s(facts)
    end = _window(last_frame_s, segments) + 1
    runs.append(range(following, end))
    if sum(run.stop - run.start for run in runs if run) > MAX_SEGMENTS:
        what = f"the video has {last_frame_s:.0f} s: more than {MAX_SEGMENTS:,} segments of {segments:g} s"
        raise MediaError("too_large", what, hint="longer segments (--segment)")
    starts = [number for run in runs for number in run]
    ends = [*starts[1:], end]
    return tuple(Segment(round(a * segments, 6), round(b * segments, 6)) for a, b in zip(starts, ends, strict=True))


def _window(time_s: float, length_s: float) -> int:
    """Return the number of the window that contains a time."""
    return int(min((time_s + BOUNDARY_TOLERANCE_S) / length_s, sys.float_info.max))


def _last_frame_s(facts: MediaFacts) -> float:
    """Return the pts of the last frame, from the average rate if it is unknown."""
    if facts.last_frame_s is not None:
        return facts.last_frame_s
    if not facts.fps:
        return max(0.0, facts.duration_s or 0.0)
    if facts.n_frames_from_content:  # exact: the rate is (frames - 1) / pts of the last one
        return (facts.n_frames_from_content - 1) / facts.fps
    return max(0.0, (facts.duration_s or 0.0) - 1.0 / facts.fps)
