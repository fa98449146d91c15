"""`vidqa bench`: every stage has a rate, for people and for machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vidqa.cli.main import run
from vidqa.errors import UsageError
from vidqa.generate.roofline import decode_bytes, measure, prefill_operations
from vidqa.pipeline.ask import ask
from vidqa.pipeline.bench import BenchOptions, bench
from vidqa.pipeline.describe import describe
from vidqa.pipeline.run.loaded_model import load_model
from vidqa.pipeline.run.run_options import RunOptions

SHORT = ("--seconds", "0.2", "--n-questions", "3", "--max-new-tokens", "4")


def test_rates_of_every_stage(clips: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(clips), "--model", str(tiny_bundle), "--json", "-q", *SHORT]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["stages"]) == {"decode", "encode", "prefill", "generate"}
    for stage in told["stages"].values():
        assert stage["per_s"] > 0
    assert told["limiting"] in told["stages"]
    assert told["answers_per_s"] > 0
    assert told["matrix_tflops"] > 0
    assert told["copy_gb_per_s"] > 0
    assert (told["model"], told["device"]) == ("tiny", "cpu")


def test_without_media_a_clip_is_made(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--model", str(tiny_bundle), *SHORT]) == 0
    out = capsys.readouterr().out
    assert "a clip made for it" in out
    assert "limiting stage:" in out


def test_the_limiting_stage_is_the_one_that_a_clip_is_in_longest(clips: Path, tiny_bundle: Path) -> None:
    """And not the one that was measured longest: that is what the user asked for."""
    asked = bench(load_model(str(tiny_bundle)), [str(clips)], BenchOptions(0.2, 200, 4))
    assert asked.limiting in ("prefill", "generate")  # 200 questions: the LLM, whatever the machine
    assert asked.clip_s["prefill"] * asked.meter.n_answers / 200 == pytest.approx(asked.meter.prefill.busy_s)
    told, text = asked.as_dict(), asked.as_text()
    assert told["limiting"] == asked.limiting and set(told["clip_s"]) == set(told["stages"])  # type: ignore[call-overload]
    assert "milliseconds for a clip and its 200 questions" in text and "with cached features" in text
    slow_disk = replace(asked, clip_s=asked.clip_s | {"decode": 9.0})  # measured as long as before
    assert slow_disk.limiting == "decode" and slow_disk.as_text().endswith("limiting stage: decode")


def test_files_that_cannot_be_decoded_are_left_out(
    clips: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    whole = sorted(clips.iterdir())[0]
    (folder / "whole.mp4").write_bytes(whole.read_bytes())
    (folder / "a_cut.mp4").write_bytes(whole.read_bytes()[:200])
    assert run(["bench", str(folder), "--model", str(tiny_bundle), *SHORT]) == 0
    out, err = capsys.readouterr()
    assert "(1 file)" in out
    assert err.count("left out:") == 1 and "a_cut.mp4" in err
    (folder / "whole.mp4").unlink()
    assert run(["bench", str(folder), "--model", str(tiny_bundle), *SHORT]) == 1
    assert "cannot be" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_answers_longer_than_the_context_are_an_error_and_not_for_ever(
    clips: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(clips), "--model", str(tiny_bundle), *SHORT[:4], "--max-new-tokens", "100000"]
    assert run(arguments) == 1
    assert "more than the context" in capsys.readouterr().err


def test_bad_input_is_said(tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(tmp_path), "--model", str(tiny_bundle), *SHORT]) == 2
    assert "no media found" in capsys.readouterr().err
    assert run(["bench", "--seconds", "-1"]) == 2
    with pytest.raises(UsageError):
        BenchOptions(seconds=0)


def test_limits_count_weights_once_a_step(tiny_bundle: Path) -> None:
    from vidqa.generate.running_batch import EngineStats

    llava = load_model(str(tiny_bundle), "cpu").llava
    weights = sum(p.numel() for p in llava.llm.model.layers.parameters()) + llava.llm.model.norm.weight.numel()
    head = llava.llm.lm_head.weight.numel()
    assert prefill_operations(llava, 10) == 20 * weights
    assert decode_bytes(llava, EngineStats(decode_steps=3, decode_kv_bytes=7)) == 3 * 4 * (weights + head) + 7
    found = measure(llava.device, llava.dtype)
    assert found.matrix_per_s > 1e8
    assert found.copy_bytes_per_s > 1e7


def test_only_a_run_that_tells_rates_measures_the_hardware(
    clips: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidqa.pipeline.run.hardware_limit._WORTH_S", 0.0)
    monkeypatch.setattr("vidqa.generate.roofline._SECONDS", 0.003)
    model, measured = load_model(str(tiny_bundle)), []
    monkeypatch.setattr(
        "vidqa.pipeline.run.hardware_limit.measure", lambda *what: measured.append(what) or measure(*what)
    )
    options = RunOptions(tmp_path / "cache", max_new_tokens=4)
    ask(str(clips), "What happens?", model=model, options=options)
    assert not measured
    summary = describe(str(clips), tmp_path / "table.csv", model=model, options=options)
    assert len(measured) == 1
    assert summary.meter.roofline_s


def test_a_device_without_room_is_not_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has gone well: it must not fail for want of a figure at its end."""
    import torch

    from vidqa.pipeline.monitor.throughput import ThroughputMeter
    from vidqa.pipeline.run.hardware_limit import hold_against_hardware

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vidqa.pipeline.run.hardware_limit.measure", full)
    meter = ThroughputMeter()
    meter.step.add(10, 1.0)
    hold_against_hardware(meter, load_model(str(tiny_bundle), "cpu"), always=True)
    assert meter.roofline_s is None
