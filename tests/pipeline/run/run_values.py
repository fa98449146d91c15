"""Values that stages of a run exchange."""

from __future__ import annotations

import numpy as np

from vidqa.records import EncodedSegment, Features, MediaFacts, MediaItem, Question

FACTS = MediaFacts("video", "h264", 32, 32, 1.0, 10.0)
QUESTIONS = (Question("a", "What?"), Question("b", "Why?"))


def media_item(name: str = "a.mp4") -> MediaItem:
    return MediaItem(f"/clips/{name}", "/clips", name, 1, 1)


def encoded_segment(start_s: float = 0.0, repeated: tuple[bool, ...] = (False,) * 8, seed: int = 0) -> EncodedSegment:
    """Return a segment with features of the shape that the tiny model expects."""
    rng = np.random.default_rng(seed)
    n_frames = len(repeated)
    features = Features(
        rng.standard_normal((n_frames, 5, 16)).astype(np.float16), np.zeros(8, np.float32), True, "video"
    )
    times = tuple(start_s + i / n_frames for i in range(n_frames))
    return EncodedSegment(FACTS, start_s, start_s + 1.0, times, repeated, features)
