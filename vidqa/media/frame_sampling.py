"""Number of frames -> which frames are looked at. Pure; does not know files or decoders.

Index rules follow the published models to the last index, so that features stay comparable:

    linspace   n=10, k=4   x..x..x..x   -> 0 3 6 9      both ends included
    arange     n=10, k=4   x.x..x.x..   -> 0 2 5 7      the end is never reached
    segments   n=10, k=4   .x.x.x.x..   -> 1 3 5 7      middle of each part
    fps        a frame every 1/rate seconds, at most k
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from vidqa.records import SamplingSpec

#: Guards a division against the last bits of a float: 3.9999999996 frames are 4.
_EPS = 1e-6


def frame_indices(
    n_frames_total: int, spec: SamplingSpec, fps: float | None = None, pts_s: Sequence[float] | np.ndarray | None = None
) -> tuple[list[int], list[bool]]:
    """Indices of the frames to look at, in playing order.

    Args:
        n_frames_total: frames in the clip or segment.
        spec: rule and number of frames.
        fps: average rate in frames per second; only the rule `fps` needs it.
        pts_s: times of all frames in seconds, ascending. With it, the rule `fps` is exact for variable frame rate.

    Returns:
        Indices [T] in 0..n_frames_total-1, and repeated [T]: True where a clip too short for the rule shows a frame
        again.

    Raises:
        ValueError: a number below 1, an unknown rule, or the rule `fps` without a rate or a clock.
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
        indices = _fixed_rate(n, spec, fps, pts_s)
    else:
        raise ValueError(f"unknown sampling rule {spec.rule!r}")
    repeated = [i > 0 and indices[i] == indices[i - 1] for i in range(len(indices))]
    return indices, repeated


def linspace_indices(n: int, k: int) -> list[int]:
    """`k` of `n` frames, both ends included, rounded down as numpy does it.

    For some k (15, 23, 47 ...) floating point steps fall just below a whole number, and numpy's answer is one less than
    exact arithmetic gives. The published models were tuned with numpy's answer, so that is the one.
    """
    return [int(i) for i in np.linspace(0, n - 1, k).astype(int)]


def arange_indices(n: int, k: int) -> list[int]:
    """`k` of `n` frames at steps of n/k from the first, rounded down (the transformers port).

    `numpy.arange(0, n, n / k)` returns k + 1 values for some (n, k), such as (17, 7), because the last step rounds to
    just below n. The extra one is dropped: the model takes k frames.
    """
    return [int(i) for i in np.arange(0, n, n / k).astype(int)[:k]]


def segment_indices(n: int, k: int) -> list[int]:
    """Middles of min(n, k) equal parts (Video-ChatGPT): fewer frames than k are never stretched to k."""
    parts = min(n, k)
    edges = np.round(np.arange(parts + 1) * (float(n - 1) / parts)).astype(int)  # half to even, as the original
    return [int(a + b) // 2 for a, b in pairwise(edges)]


def _fixed_rate(n: int, spec: SamplingSpec, fps: float | None, pts_s: Sequence[float] | np.ndarray | None) -> list[int]:
    """A frame every 1/rate seconds; no frame twice; spread evenly where more than n_frames would come out."""
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
        raise ValueError(f"the rule `fps` needs the rate of the clip or the times of its frames, got {fps=}")
    found = [int(i) for i in np.unique(picked)]
    return found if len(found) <= spec.n_frames else [found[i] for i in linspace_indices(len(found), spec.n_frames)]
