"""Rates of the stages, and their share of what the hardware allows."""

from __future__ import annotations

import json

from vidqa.pipeline.monitor.throughput import ThroughputMeter


def test_rates_and_limits() -> None:
    meter = ThroughputMeter()
    meter.encode.add(20, 2.0)
    meter.step.add(300, 6.0)
    meter.encode_operations, meter.step_bytes, meter.n_answers = 1e12, 6e10, 12
    meter.set_hardware_speed(1e12, 2e10)
    plain = meter.as_dict(wall_s=8.0)
    assert plain["answers_per_s"] == 1.5
    assert plain["stages"]["encode"] == {  # type: ignore[index]
        "unit": "segments", "n": 20, "busy_s": 2.0, "per_s": 10.0, "limit_per_s": 20.0, "share_of_limit": 0.5,
    }  # fmt: skip
    assert plain["stages"]["decode"]["per_s"] is None  # type: ignore[index]
    assert plain["roofline_s"] == 4.0
    text = meter.as_text(8.0, hardware=True)
    assert "50% of the hardware's limit" in text
    assert "1.50 answers/s overall" in text
    assert "hardware" not in meter.as_text(8.0)
    assert "limit" not in json.dumps(list(plain)), "the meter cannot determine the bottleneck of a run"


def test_without_work_there_is_no_text() -> None:
    assert ThroughputMeter().as_text(1.0) == ""
    assert ThroughputMeter().as_dict(0.0)["answers_per_s"] is None
