"""Number of frames -> indices of the sampled frames. Pure functions.

The rules reproduce the published models exactly, so that features stay comparable:

    linspace   n=10, k=4   x..x..x..x   -> 0 3 6 9      both ends included
    arange     n=10, k=4   x.x..x.x..   -> 0 2 5 7      the last frame is never included
    segments   n=10, k=4   .x.x.x.x..   -> 1 3 5 7      midpoints of equal parts
    fps        one frame every 1/rate seconds, at most k
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from vidqa.records import SamplingSpec

#: Tolerance for rounding errors of a division: 3.9999999996 frames are 4.
_EPS = 1e-6


def frame_indices(
    n_frames_total: int, spec: SamplingSpec, fps: float | None = None, pts_s: Sequence[float] | np.ndarray | None = None
) -> tuple[list[int], list[bool]]:
    """Return the indices of the sampled frames, in playing order.

    Args:
        n_frames_total: number of frames in the video or segment.
        spec: sampling rule and number of frames.
        fps: average rate in frames per second; only used by the rule `fps`.
        pts_s: pts of all frames in seconds, ascending. With them, the rule `fps` is exact for variable frame rates.

    Returns:
        Indices [T] in 0..n_frames_total-1, and repeated [T]: True where a video that is too short for the rule repeats
        the previous frame.

    Raises:
        ValueError: a number below 1, an unknown rule, or the rule `fps` without a rate or times.
    """
    n, k = n_frames_total, spec.n_frames
    if n < 1 or k < 1:
        raise ValueError(f"need n_frames_total >= 1 and n_frames >= 1, got {n_frames_total=} {spec.n_frames=}")
    if spec.rule == "linspace":
        indices = linspace_indices(n, k)
    elif spec.rule == "arange":
        indices = arange_indices(n, k)
    elif spec.rule == "segments":
        indices = segment_indices(n, k)
    elif spec.rule == "fps":
        indices = _fps_indices(n, spec, fps, pts_s)
    else:
        raise ValueError(f"unknown sampling rule {spec.rule!r}")
    repeated = [i > 0 and indices[i] == indices[i - 1] for i in range(len(indices))]
    return indices, repeated


def linspace_indices(n: int, k: int) -> list[int]:
    """Return `k` of `n` indices, both ends included, rounded down like `numpy.linspace(...).astype(int)`.

    For some k (15, 23, 47 ...) a floating point step falls just below an integer, and numpy's index is one less than in
    exact arithmetic. The published models were trained with numpy's indices.
    """
    return [int(i) for i in np.linspace(0, n - 1, k).astype(int)]


def arange_indices(n: int, k: int) -> list[int]:
    """Return `k` of `n` indices in steps of n/k, starting at 0, rounded down (transformers' Video-LLaVA port).

    `numpy.arange(0, n, n / k)` returns k + 1 values for some (n, k), such as (17, 7), because the last step rounds to
    just below n. The extra one is dropped, because the model takes k frames.
    """
    return [int(i) for i in np.arange(0, n, n / k).astype(int)[:k]]


def segment_indices(n: int, k: int) -> list[int]:
    """Return the midpoints of min(n, k) equal parts (Video-ChatGPT). Frames are never repeated to reach k."""
    parts = min(n, k)
    edges = np.round(np.arange(parts + 1) * (float(n - 1) / parts)).astype(int)  # half to even, like the original
    return [int(a + b) // 2 for a, b in pairwise(edges)]


def _fps_indices(
    n: int, spec: SamplingSpec, fps: float | None, pts_s: Sequence[float] | np.ndarray | None
) -> list[int]:
    """Return one frame every 1/rate seconds, without repetition; an evenly spaced subset if there are too many."""
    if not spec.rate or spec.rate <= 0:
        raise ValueError(f"the rule `fps` needs a rate above 0, got {spec.rate=}")
    if pts_s is not None:
        times = np.asarray(pts_s, np.float64)
        ticks = times[0] + np.arange(int((times[-1] - times[0]) * spec.rate + _EPS) + 1) / spec.rate
        picked = np.searchsorted(times, ticks + _EPS, side="right") - 1
    elif fps and fps > 0:
        picked = np.arange(int((n - 1) * spec.rate / fps + _EPS) + 1) * fps / spec.rate
        picked = (picked + _EPS).astype(int)
    else:
        raise ValueError(f"the rule `fps` needs the frame rate or the frame times of the video, got {fps=}")
    found = [int(i) for i in np.unique(picked)]
    return found if len(found) <= spec.n_frames else [found[i] for i in linspace_indices(len(found), spec.n_frames)]
