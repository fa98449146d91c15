"""Throughput of earlier runs: how a run is estimated from it, and that a damaged file is ignored."""

from __future__ import annotations

import pytest

from vidqa.pipeline.describe import describe
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.monitor.throughput_history import RATES_NAME, HistoryKey, Rates, load_rates, record_rates
from vidqa.pipeline.run.loaded_model import load_model
from vidqa.pipeline.run.run_options import RunOptions


def summary(files: int = 10, frames: int = 0, answers: int = 0, **seconds: float) -> Summary:
    made = Summary(files=files)
    made.meter.decode.add(frames, 1.0)
    made.rows.update(ok=answers)
    made.seconds |= seconds
    return made


def test_an_estimate_is_the_sum_of_what_was_measured():
    rates = Rates().with_run(summary(10, 20, 40, read=1.0, load=5.0, decode=6.0, encode=4.0, generate=18.0, write=2.0))
    assert rates.estimate_s(10, 20, 40) == pytest.approx(1 + 5 + 10 + 20)
    assert rates.estimate_s(100, 0, 0) == pytest.approx(10)
    assert rates.estimate_s(10, 0, 2) == pytest.approx(1 + 5 + 1)


def test_startup_costs_are_not_multiplied():
    """One video takes half a second to start the decoder processes; 1,000 videos do not take 500 s for that."""
    one = summary(1, 8, 1, decode=0.51, encode=0.01, generate=0.03)
    one.start_s = 0.5
    assert Rates().with_run(one).estimate_s(1000, 8000, 1000) == pytest.approx(0.5 + 20 + 30)


def test_a_run_separates_its_startup_costs(tiny_bundle, clips, tmp_path):
    model, options = load_model(str(tiny_bundle), "cpu"), RunOptions(tmp_path / "cache")
    done = describe(clips, tmp_path / "t.csv", model=model, options=options)
    assert 0.02 < done.start_s < done.seconds["decode"]  # an interpreter takes longer to start
    kept = load_rates(tmp_path / "cache", model.history_key)
    assert kept.load_s == done.seconds["load"] + done.start_s
    assert kept.encode_s == done.seconds["decode"] - done.start_s + done.seconds["encode"]
    assert kept.frames == 3 * model.bundle.spec.encoders.video.n_frames
    cached = describe(clips, tmp_path / "u.csv", model=model, options=options)
    assert cached.start_s == 0 and load_rates(tmp_path / "cache", model.history_key).frames == kept.frames


def test_an_llm_that_ran_in_parallel_to_the_encoder_still_costs_time():
    run = summary(10, 80, 10, encode=100.0, generate=0.1)
    run.meter.prefill.add(1, 60.0)
    run.meter.step.add(1, 20.0)
    gpu = Rates().with_run(run, own_device=True)
    assert gpu.estimate_s(10, 80, 10) == pytest.approx(100.1)  # the same again
    assert gpu.estimate_s(10, 0, 50) == pytest.approx(400)  # from cached features, five questions each
    assert Rates().with_run(run).estimate_s(10, 0, 50) == pytest.approx(
        0.5
    )  # busy seconds on shared cores do not count


def test_extrapolation_is_rough():
    rates = Rates().with_run(summary(10, 80, 10))
    assert not rates.is_rough(1600, 200) and rates.is_rough(1608, 0) and rates.is_rough(0, 201)


def test_there_is_no_estimate_without_a_measurement():
    assert Rates().estimate_s(10, 0, 0) is None
    only_read = Rates().with_run(summary(read=1.0))
    assert only_read.estimate_s(10, 0, 0) == pytest.approx(1) and only_read.estimate_s(10, 1, 1) is None


def test_later_runs_count_more_and_runs_without_work_change_nothing():
    rates = Rates().with_run(summary(10, 10, 10, encode=10.0, generate=10.0, load=3.0))
    for _ in range(5):
        rates = rates.with_run(summary(10, read=1.0))
    assert rates.estimate_s(0, 10, 0) == pytest.approx(13) and rates.n_runs == 6
    faster = rates.with_run(summary(10, 10, 10, encode=1.0, generate=1.0, load=3.0))
    assert 3 + 1 < faster.estimate_s(0, 10, 0) < 13


def test_rates_are_kept_per_device_and_model_in_the_cache_folder(tmp_path):
    key = HistoryKey("cpu", "encoder", "model")
    assert load_rates(tmp_path, key) == Rates()
    record_rates(tmp_path, key, summary(4, 4, 4, encode=2.0))
    assert load_rates(tmp_path, key).frames == 4
    assert load_rates(tmp_path, HistoryKey("cuda:0", "encoder", "model")) == Rates()
    odd = '{"format": 2, "rates": {"cpu": {"frames": %s}}}'
    damaged = [odd % value for value in ("NaN", "1e999", "-1", "1" + 300 * "0", "null", "[]")]
    for content in (*damaged, "", "[]", '{"format": 1}', '{"format": 2, "rates": {"x": {"files": "many"}}}'):
        (tmp_path / RATES_NAME).write_text(content)
        assert load_rates(tmp_path, key) == Rates()
    record_rates(tmp_path / "missing", key, summary())  # not writable: no error
    assert not (tmp_path / "missing").exists()
