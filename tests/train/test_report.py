"""The drawn mean of the loss follows its steps, stage by stage."""

import pytest

from vidqa.train.outputs.report import _smoothed


def lines(*stages):
    return [{"stage": n, "loss": loss} for n, losses in enumerate(stages, start=1) for loss in losses]


def test_the_mean_of_a_short_stage_follows_it_and_begins_anew_with_the_next():
    falling = [4.0 * 0.7**n for n in range(12)]
    drawn = _smoothed(lines(falling, [9.0, 9.0]))
    assert drawn[0] == falling[0] and drawn[12:] == [9.0, 9.0]
    assert falling[11] < drawn[11] < falling[6]  # behind by a few steps of twelve


def test_the_mean_of_a_long_stage_hides_single_steps():
    drawn = _smoothed(lines([1.0 + n % 2 for n in range(400)]))
    assert drawn[200:] == pytest.approx([1.5] * 200, abs=0.03)
