"""Encoded segments with values that are hard to store: -0.0, the largest and smallest floats, irregular times."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from vidqa.cache import entry
from vidqa.cache.key import CacheKey
from vidqa.records import EncodedSegment, Features, MediaFacts


def make_segment(seed: int = 0, n_frames: int = 4) -> EncodedSegment:
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((n_frames, 5, 16)).astype(np.float16)
    tokens[0, 0, :4] = [-65504, -0.0, 65504, 6e-8]
    return EncodedSegment(
        facts=MediaFacts("video", "h264", 640, 480, 1 / 3, 29.97002997002997, 90, Fraction(16, 15), 120, None, 1),
        start_s=0.1,
        end_s=0.1 + 0.2,
        frame_times_s=tuple(i / 30 for i in range(n_frames)),
        repeated=(False,) * (n_frames - 1) + (True,),
        features=Features(tokens, rng.standard_normal(8).astype(np.float32), True, "video"),
    )


@pytest.fixture
def segment() -> Callable[..., EncodedSegment]:
    return make_segment


@pytest.fixture
def overflowed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Function that packs a segment with a value that is not finite, as earlier versions did."""

    def pack(key: CacheKey, part: str, value: float) -> bytes:
        segment = make_segment()
        getattr(segment.features, part).flat[-1] = value
        with monkeypatch.context() as patch:
            patch.setattr(Features, "is_finite", True)
            return entry.pack(key, segment)

    return pack
