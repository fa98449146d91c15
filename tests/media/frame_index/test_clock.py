"""Ascending times from a clock that jumps. Ticks are milliseconds."""

from __future__ import annotations

import numpy as np
import pytest

from vidqa.media.frame_index.clock import largest_jump, repair_clock

STEADY = np.arange(200) * 40 + 5000
H26 = 26 * 3_600_000


def repaired(times: np.ndarray) -> tuple[list[int], list[int]] | None:
    result = repair_clock(times, 1000.0, 1000.0)  # a header with a wrong rate
    return result and (result[0].tolist(), result[1].tolist())


def changed(at: slice | int, by: int) -> np.ndarray:
    times = STEADY.copy()
    times[at] += by
    return times


def test_pauses_are_kept() -> None:
    times = changed(slice(100, None), H26)
    assert repaired(times) == (list(range(200)), times.tolist())
    assert largest_jump(times, 1000.0) == H26 + 40
    assert largest_jump(changed(slice(100, None), 3_600_000), 1000.0) == 0  # one slide shown for an hour


@pytest.mark.parametrize("by", [H26, -3000])
def test_odd_timestamps_are_left_out(by: int) -> None:
    kept = [i for i in range(200) if i not in (100, 101)]
    assert repaired(changed(slice(100, 102), by)) == (kept, STEADY[kept].tolist())


@pytest.mark.parametrize("by", [-100 * 40 - 13, -4000 - 5000, -3000])
def test_a_clock_that_starts_again_continues(by: int) -> None:
    times = changed(slice(100, None), by)
    assert repaired(times) == (list(range(200)), STEADY.tolist())
    assert largest_jump(times, 1000.0) == -by - 40


def test_a_clock_that_is_wrong_for_a_while_continues() -> None:
    assert repaired(changed(slice(50, 120), H26)) == (list(range(200)), STEADY.tolist())


def test_small_steps_backward_lose_no_frame() -> None:
    times = changed(100, -60)
    assert repaired(times) == (list(range(200)), [*STEADY[:100], STEADY[99] + 1, *STEADY[101:]])
    assert largest_jump(times, 1000.0) == 0


def test_frames_are_counted_if_that_is_more_accurate() -> None:
    assert repair_clock(changed(100, H26), 1000.0, 25.0) is None  # clock and frame rate agree on the whole
    shuffled = np.random.default_rng(1).permutation(STEADY)
    assert repair_clock(shuffled, 1000.0, 1000.0) is None and largest_jump(shuffled, 1000.0) == 0
    assert repair_clock(np.array([5, 5]), 1000.0, 1000.0) is None
