"""Timestamps in the order of a stream -> ascending times, without the jumps of a broken clock. Pure functions.

A pause is a step forward, and its times are kept, however long it is. A clock that goes backward is wrong:

    12.0 12.1 12.2 95443.7 12.4 12.5     a few odd timestamps: they are dropped
    12.0 12.1 12.2  0.0  0.1  0.2        a clock that restarts: the rest continues from the time before
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

#: A step forward of this many seconds is reported as a jump. No frame is shown for that long on purpose.
MIN_FORWARD_JUMP_S = 6 * 3600
#: A step backward of this many seconds is a jump; smaller ones occur in files of inaccurate muxers.
MIN_BACKWARD_JUMP_S = 1.0
#: Maximum number of consecutive timestamps, and maximum fraction of all, that are dropped as odd ones.
_MAX_ODD_RUN, _MAX_ODD_FRACTION = 8, 0.05
#: More than this fraction of steps backward means that the timestamps are no times at all.
_MAX_BACKWARD_FRACTION = 0.1
#: A frame rate and a clock that differ by at most this many seconds, or this fraction, agree.
_MAX_DIFFERENCE_S, _MAX_DIFFERENCE = 1.0, 0.02


def repair_clock(times: np.ndarray, second: float, rate: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Return strictly ascending times.

    Args:
        times: int64 [N], ticks, in the order in which the frames are shown.
        second: ticks per second.
        rate: frame rate from the header in frames per second.

    Returns:
        Numbers of the frames that are kept, int64 [M], and their times, int64 [M]; None if counting the frames is more
        accurate.
    """
    steps = np.diff(times)
    backward = steps <= 0
    every = np.arange(len(times), dtype=np.int64)
    if not backward.any():
        return every, times
    counted_s = (len(times) - 1) / rate
    difference_s = abs(float(times[-1] - times[0]) / second - counted_s)
    if _is_no_clock(steps) or difference_s <= max(_MAX_DIFFERENCE_S, _MAX_DIFFERENCE * counted_s):
        return None
    if not (steps <= -MIN_BACKWARD_JUMP_S * second).any():  # slightly inaccurate
        return every, np.maximum.accumulate(times - every) + every
    kept = _longest_ascending(times)
    odd_runs = np.diff(np.concatenate(([-1], kept, [len(times)]))) - 1
    if odd_runs.max() <= _MAX_ODD_RUN and len(times) - len(kept) <= max(1.0, _MAX_ODD_FRACTION * len(times)):
        return kept, times[kept]
    jumps = backward | (steps >= MIN_FORWARD_JUMP_S * second)
    ordinary = int(np.median(steps[~jumps]))
    return every, times[0] + np.concatenate(([0], np.cumsum(np.where(jumps, max(1, ordinary), steps))))


def unwrap_clock(times: np.ndarray) -> np.ndarray:
    """Undo FFmpeg's guess that a clock of 33 bits, as in MPEG streams, has wrapped around.

    FFmpeg adds 2^33 ticks when the clock goes backward by more than a minute, which is right after 26.5 hours, but not
    when a recording starts again. A step forward of more than half of that was backward.

    Args:
        times: int64 [N], ticks of 1/90000 s.
    """
    steps = np.diff(times)
    return times - np.concatenate(([0], np.cumsum(np.where(steps > 1 << 32, 1 << 33, 0))))


def largest_jump(times: np.ndarray, second: float) -> int:
    """Return the largest jump of the clock in ticks, or 0 if there is none.

    Args:
        times: int64 [N], ticks, in the order in which the frames are stored or shown.
        second: ticks per second.
    """
    steps = np.diff(times)
    jumps = (steps >= MIN_FORWARD_JUMP_S * second) | (steps <= -MIN_BACKWARD_JUMP_S * second)
    return int(np.abs(steps[jumps]).max()) if jumps.any() and not _is_no_clock(steps) else 0


def _is_no_clock(steps: np.ndarray) -> bool:
    return bool(np.count_nonzero(steps <= 0) > max(1.0, _MAX_BACKWARD_FRACTION * len(steps)) or (steps <= 0).all())


def _longest_ascending(times: np.ndarray) -> np.ndarray:
    """Return the indices of the longest strictly ascending subsequence, int64 [M]."""
    lasts: list[int] = []  # smallest possible last value of a subsequence of each length
    at: list[int] = []  # its index
    before = [-1] * len(times)
    for i, time in enumerate(times.tolist()):
        length = bisect_right(lasts, time - 1)
        before[i] = at[length - 1] if length else -1
        lasts[length : length + 1] = [time]
        at[length : length + 1] = [i]
    found, i = [], at[-1]
    while i >= 0:
        found.append(i)
        i = before[i]
    return np.asarray(found[::-1], np.int64)
