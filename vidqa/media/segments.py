"""Facts of a clip -> the stretches that get rows. Pure; does not know files or decoders."""

from __future__ import annotations

from vidqa.records import WHOLE, MediaFacts, Segment

#: Frame times are sums of fractions; a frame this close to a border belongs to the window that begins there.
BOUNDARY_TOLERANCE_S = 1e-6


def plan_segments(facts: MediaFacts, seconds: float | tuple[Segment, ...] | None) -> tuple[Segment, ...]:
    """Cut a clip into windows of fixed length, or as told.

    There is a window for every stretch in which a frame begins: the duration of the last frame does not make a new one.
    The last window keeps its nominal end, so keys do not depend on how exactly the duration is known.

    Args:
        facts: of the clip; counted facts give exact windows, a lying header gives wrong ones.
        seconds: length of a window; None means one segment, the whole clip; or the windows themselves. Stills are
            always whole.

    Returns:
        Windows in playing order, at least one. A clip of unknown duration gives one window.

    Raises:
        ValueError: `seconds` is not above 0.
    """
    if isinstance(seconds, tuple):
        return (WHOLE,) if facts.kind == "image" else seconds
    if seconds is not None and not seconds > 0:
        raise ValueError(f"a segment needs a length above 0 seconds, got {seconds=}")
    if seconds is None or facts.kind == "image":
        return (WHOLE,)
    last_frame_s = max(0.0, (facts.duration_s or 0.0) - (1.0 / facts.fps if facts.fps else 0.0))
    n_windows = int((last_frame_s + BOUNDARY_TOLERANCE_S) / seconds) + 1
    return tuple(Segment(round(i * seconds, 6), round((i + 1) * seconds, 6)) for i in range(n_windows))
