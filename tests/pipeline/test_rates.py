"""Rates of earlier runs: what an estimate is made of, and that a damaged file of them harms nobody."""

from __future__ import annotations

import pytest

from vidqa.pipeline.loaded import load_model
from vidqa.pipeline.rates import RATES_NAME, Rates, recall, remember
from vidqa.pipeline.summary import Summary


def summary(files: int = 10, segments: int = 0, answers: int = 0, **seconds: float) -> Summary:
    made = Summary(files=files, segments=segments)
    made.rows.update(ok=answers)
    made.seconds |= seconds
    return made


def test_an_estimate_is_the_sum_of_what_was_measured():
    rates = Rates().with_run(summary(10, 20, 40, read=1.0, load=5.0, decode=6.0, encode=4.0, generate=18.0, write=2.0))
    assert rates.estimate_s(10, 20, 40) == pytest.approx(1 + 5 + 10 + 20)
    assert rates.estimate_s(100, 0, 0) == pytest.approx(10)
    assert rates.estimate_s(10, 0, 2) == pytest.approx(1 + 5 + 1)


def test_what_was_never_measured_is_not_guessed():
    assert Rates().estimate_s(10, 0, 0) is None
    only_known = Rates().with_run(summary(read=1.0))
    assert only_known.estimate_s(10, 0, 0) == pytest.approx(1) and only_known.estimate_s(10, 1, 1) is None


def test_later_runs_count_more_and_idle_ones_spoil_nothing():
    rates = Rates().with_run(summary(10, 10, 10, encode=10.0, generate=10.0, load=3.0))
    for _ in range(5):
        rates = rates.with_run(summary(10, read=1.0))
    assert rates.estimate_s(0, 10, 0) == pytest.approx(13) and rates.n_runs == 6
    faster = rates.with_run(summary(10, 10, 10, encode=1.0, generate=1.0, load=3.0))
    assert 3 + 1 < faster.estimate_s(0, 10, 0) < 13


def test_kept_for_each_model_in_the_cache_folder(tiny_bundle, tmp_path):
    model = load_model(str(tiny_bundle), "cpu")
    assert recall(tmp_path, model) == Rates()
    remember(tmp_path, model, summary(4, 4, 4, encode=2.0))
    assert recall(tmp_path, model).segments == 4
    for content in ("", "[]", '{"format": 2}', '{"format": 1, "rates": {"x": {"files": "many"}}}'):
        (tmp_path / RATES_NAME).write_text(content)
        assert recall(tmp_path, model) == Rates()
    remember(tmp_path / "not there", model, summary())  # nothing to write to: no error
    assert not (tmp_path / "not there").exists()
