"""Segments of a video, and which frames belong to them."""

from __future__ import annotations

import numpy as np
import pytest

from vidqa.errors import MediaError
from vidqa.media.decode import select_frames
from vidqa.media.segments import plan_segments
from vidqa.records import WHOLE, MediaFacts, SamplingSpec, Segment


def facts(duration_s: float | None, fps: float | None = 10.0, kind: str = "video") -> MediaFacts:
    return MediaFacts(kind, "h264", 64, 64, duration_s, fps)  # type: ignore[arg-type]


def test_one_segment_by_default_and_for_images() -> None:
    assert plan_segments(facts(60.0), None) == (WHOLE,)
    assert plan_segments(facts(None, None, "image"), 10.0) == (WHOLE,)


@pytest.mark.parametrize(
    ("duration_s", "keys"),
    [
        (25.0, ["0.000-10.000", "10.000-20.000", "20.000-30.000"]),
        (20.0, ["0.000-10.000", "10.000-20.000"]),
        (20.04, ["0.000-10.000", "10.000-20.000"]),  # the last frame starts before 20 s
        (3.0, ["0.000-10.000"]),
        (0.0, ["0.000-10.000"]),
        (None, ["0.000-10.000"]),
    ],
)
def test_fixed_length(duration_s: float | None, keys: list[str]) -> None:
    assert [s.key for s in plan_segments(facts(duration_s), 10.0)] == keys


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_invalid_lengths_are_rejected(seconds: float) -> None:
    with pytest.raises(ValueError):
        plan_segments(facts(10.0), seconds)


def test_every_frame_belongs_to_one_segment() -> None:
    pts_s = np.arange(0, 251) / 10
    every = SamplingSpec("fps", 10_000, rate=10.0)
    found = [list(select_frames(pts_s, s, every, 10.0)[0]) for s in plan_segments(facts(25.1), 2.5)]
    assert len(found) == 11
    assert [i for segment in found for i in segment] == list(range(251))
    assert found[1][0] == 25  # the frame at 2.5 s is the first of the second segment


def test_a_segment_without_a_frame_start_shows_the_frame_before() -> None:
    pts_s = np.array([0.0, 1.0, 25.0])
    indices, repeated = select_frames(pts_s, Segment(10.0, 20.0), SamplingSpec(n_frames=2), 1.0)
    assert indices.tolist() == [1, 1] and repeated.tolist() == [True, True]


def test_short_segments_mark_repeated_frames() -> None:
    pts_s = np.arange(10) / 10
    indices, repeated = select_frames(pts_s, Segment(0.5, 0.8), SamplingSpec(n_frames=4), 10.0)
    assert indices.tolist() == [5, 5, 6, 7]
    assert repeated.tolist() == [False, True, False, False]


def test_the_number_of_segments_is_limited() -> None:
    assert len(plan_segments(facts(1000.0), 0.01)) == 99_991
    for duration_s, length_s in ((1000.2, 0.01), (10.0, 1e-9), (1e300, 10.0)):
        with pytest.raises(MediaError, match="more than 100,000 segments") as caught:
            plan_segments(facts(duration_s), length_s)
        assert caught.value.kind == "too_large"
