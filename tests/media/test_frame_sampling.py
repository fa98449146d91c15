"""Sampling rules; golden data of the original implementations is in tests/parity/test_golden.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.media.frame_sampling import arange_indices, frame_indices, linspace_indices, segment_indices
from vidqa.records import SamplingSpec


@pytest.mark.parametrize("k", [4, 8, 16])
def test_published_sizes_equal_exact_arithmetic(k: int) -> None:
    for n in range(1, 3000):
        assert linspace_indices(n, k) == [i * (n - 1) // (k - 1) for i in range(k)]
        assert arange_indices(n, k) == [i * n // k for i in range(k)]


def test_repeated_frames_are_marked() -> None:
    assert frame_indices(2, SamplingSpec("linspace", 4)) == ([0, 0, 0, 1], [False, True, True, False])
    assert frame_indices(1, SamplingSpec("linspace", 3)) == ([0, 0, 0], [False, True, True])
    assert frame_indices(1, SamplingSpec("segments", 100)) == ([0], [False])
    assert not any(frame_indices(8, SamplingSpec())[1])


def test_fps() -> None:
    one_per_second = SamplingSpec("fps", 100, rate=1.0)
    assert frame_indices(31, one_per_second, fps=10)[0] == [0, 10, 20, 30]
    assert frame_indices(300, one_per_second, fps=30000 / 1001)[0] == [0, 29, 59, 89, 119, 149, 179, 209, 239, 269]
    assert frame_indices(3, SamplingSpec("fps", 100, rate=50.0), fps=10)[0] == [0, 1, 2]
    assert frame_indices(31, SamplingSpec("fps", 2, rate=1.0), fps=10)[0] == [0, 30]


def test_fps_with_variable_frame_rate() -> None:
    pts = [5.0, 5.1, 5.2, 8.0, 8.9, 9.0]  # the third frame is shown for 2.8 s
    assert frame_indices(6, SamplingSpec("fps", 100, rate=1.0), fps=1.25, pts_s=pts)[0] == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("n", "spec", "fps"),
    [
        (0, SamplingSpec(), None),
        (5, SamplingSpec(n_frames=0), None),
        (5, SamplingSpec("fps", 8, rate=1.0), None),
        (5, SamplingSpec("fps", 8), 25.0),
        (5, SamplingSpec("random", 8), None),  # type: ignore[arg-type]
    ],
)
def test_invalid_arguments_are_rejected(n: int, spec: SamplingSpec, fps: float | None) -> None:
    with pytest.raises(ValueError):
        frame_indices(n, spec, fps)


@given(st.integers(1, 5000), st.integers(1, 128), st.sampled_from(["linspace", "arange", "segments"]))
def test_indices_are_in_range_and_sorted(n: int, k: int, rule: str) -> None:
    indices, repeated = frame_indices(n, SamplingSpec(rule, k))  # type: ignore[arg-type]
    assert len(indices) == len(repeated) == (min(n, k) if rule == "segments" else k)
    assert indices == sorted(indices) and indices[0] >= 0 and indices[-1] < n
    assert segment_indices(n, 1) == [int(np.round(n - 1)) // 2]
