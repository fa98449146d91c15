"""Segments of a video, and which frames belong to them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from vidqa.errors import MediaError
from vidqa.media.decode import select_frames
from vidqa.media.segments import find_pauses, plan_segments
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


def planned(pts_s: list[float], length_s: float) -> list[tuple[float, float | None]]:
    """Segments of a video with frames at these times, planned from its facts."""
    times = np.asarray(pts_s)
    rate = (len(times) - 1) / times[-1]
    counted = replace(facts(times[-1] + 0.04, rate), last_frame_s=float(times[-1]), pauses=find_pauses(times))
    return [(s.start_s, s.end_s) for s in plan_segments(counted, length_s)]


def test_windows_reach_the_last_frame_of_a_variable_frame_rate() -> None:
    assert planned([0.0, 14.0, 21.0], 10.0) == [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]
    assert planned([*(i / 25 for i in range(20)), 9.99, 10.01], 10.0) == [(0.0, 10.0), (10.0, 20.0)]


def test_windows_without_a_frame_are_joined_to_the_one_before() -> None:
    assert planned([0.0, 0.5, 30.5], 10.0) == [(0.0, 30.0), (30.0, 40.0)]
    assert planned([0.0, 0.04, 95_443.0], 60.0) == [(0.0, 95_400.0), (95_400.0, 95_460.0)]
    assert planned([0.0, 3600.0, 3601.0, 7300.0], 10.0) == [(0.0, 3600.0), (3600.0, 7300.0), (7300.0, 7310.0)]


@pytest.mark.parametrize("length_s", [0.3, 1.0, 2.5, 7.0, 60.0])
def test_windows_tile_the_video_and_show_every_frame_once(length_s: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        steps = np.where(rng.random(60) < 0.1, rng.uniform(1.5, 90.0, 60), rng.uniform(0.01, 0.5, 60))
        pts_s = np.concatenate(([0.0], np.cumsum(steps)))
        segments = planned(pts_s.tolist(), length_s)
        assert segments[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(segments))
        every = SamplingSpec("arange", 1000)
        shown = [np.unique(select_frames(pts_s, Segment(*s), every, 10.0)[0]).tolist() for s in segments]
        if length_s >= 1:  # shorter windows may be held for a while
            assert [i for frames in shown for i in frames] == list(range(61))
        assert {i for frames in shown for i in frames} == set(range(61))


def test_a_time_lapse_has_a_bounded_number_of_pauses() -> None:
    times = np.arange(5000) * 10.0
    assert find_pauses(times) == ()  # all equally long: none stands out
    times[2000:] += 3600
    assert find_pauses(times) == ((19_990.0, 23_600.0),)
    assert len(find_pauses(np.cumsum(np.random.default_rng(1).uniform(2, 9, 5000)))) == 1000


def test_facts_of_earlier_versions_are_split_as_before() -> None:
    old = replace(facts(25.1, 10.0), n_frames_from_content=251)  # no pts of the last frame, no pauses
    assert [s.key for s in plan_segments(old, 10.0)] == ["0.000-10.000", "10.000-20.000", "20.000-30.000"]
    slides = replace(facts(21.001, 2 / 21), n_frames_from_content=3)
    assert len(plan_segments(slides, 10.0)) == 3  # the rate of counted frames yields the pts of the last one
