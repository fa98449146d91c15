"""`vidqa bench`: the throughput of every stage, as text and as JSON."""

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


@pytest.mark.slow
def test_rates_of_every_stage(clips: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(clips), "--model", str(tiny_bundle), "--json", "-q", *SHORT]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert set(plain["stages"]) == {"decode", "encode", "prefill", "generate"}
    for stage in plain["stages"].values():
        assert stage["per_s"] > 0
    assert plain["bottleneck"] in plain["stages"]
    assert plain["answers_per_s"] > 0
    assert plain["matrix_tflops"] > 0
    assert plain["copy_gb_per_s"] > 0
    assert (plain["model"], plain["device"]) == ("tiny", "cpu")


@pytest.mark.slow
def test_without_media_a_video_is_generated(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--model", str(tiny_bundle), *SHORT]) == 0
    out = capsys.readouterr().out
    assert "generated video" in out
    assert "bottleneck:" in out


@pytest.mark.slow
def test_the_bottleneck_is_the_stage_that_takes_longest_per_file(clips: Path, tiny_bundle: Path) -> None:
    """All stages are measured for the same time, which is an option."""
    result = bench(load_model(str(tiny_bundle)), [str(clips)], BenchOptions(0.2, 200, 4))
    assert result.bottleneck in ("prefill", "generate")  # 200 questions: the LLM, whatever the machine
    assert result.clip_s["prefill"] * result.meter.n_answers / 200 == pytest.approx(result.meter.prefill.busy_s)
    plain, text = result.as_dict(), result.as_text()
    assert plain["bottleneck"] == result.bottleneck and set(plain["clip_s"]) == set(plain["stages"])  # type: ignore[call-overload]
    assert "milliseconds per file with 200 questions" in text and "with cached features" in text
    slow_decoding = replace(result, clip_s=result.clip_s | {"decode": 9.0})  # measured as long as before
    assert slow_decoding.bottleneck == "decode" and slow_decoding.as_text().endswith("bottleneck: decode")


@pytest.mark.slow
def test_files_that_cannot_be_decoded_are_skipped(
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
    assert err.count("skipped:") == 1 and "a_cut.mp4" in err
    (folder / "whole.mp4").unlink()
    assert run(["bench", str(folder), "--model", str(tiny_bundle), *SHORT]) == 1
    assert "cannot be" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_answers_longer_than_the_context_are_an_error(
    clips: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(clips), "--model", str(tiny_bundle), *SHORT[:4], "--max-new-tokens", "100000"]
    assert run(arguments) == 1
    assert "more than the context" in capsys.readouterr().err


def test_bad_input_is_reported(tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(tmp_path), "--model", str(tiny_bundle), *SHORT]) == 1
    assert "no media found" in capsys.readouterr().err
    assert run(["bench", "--seconds", "-1"]) == 2
    with pytest.raises(UsageError):
        BenchOptions(seconds=0)


def test_limits_count_the_weights_once_per_step(tiny_bundle: Path) -> None:
    from vidqa.generate.running_batch import EngineStats

    llava = load_model(str(tiny_bundle), "cpu").llava
    weights = sum(p.numel() for p in llava.llm.model.layers.parameters()) + llava.llm.model.norm.weight.numel()
    head = llava.llm.lm_head.weight.numel()
    assert prefill_operations(llava, 10) == 20 * weights
    assert decode_bytes(llava, EngineStats(decode_steps=3, decode_kv_bytes=7)) == 3 * 4 * (weights + head) + 7
    found = measure(llava.device, llava.dtype)
    assert found.matmul_flop_per_s > 1e8
    assert found.copy_bytes_per_s > 1e7


@pytest.mark.slow
def test_only_a_run_that_reports_throughput_measures_the_hardware(
    clips: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidqa.pipeline.run.hardware_limit._MIN_BUSY_S", 0.0)
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


def test_a_full_device_is_not_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has succeeded, and must not fail because a figure at its end is missing."""
    import torch

    from vidqa.pipeline.monitor.throughput import ThroughputMeter
    from vidqa.pipeline.run.hardware_limit import measure_hardware

    def raise_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vidqa.pipeline.run.hardware_limit.measure", raise_out_of_memory)
    meter = ThroughputMeter()
    meter.step.add(10, 1.0)
    measure_hardware(meter, load_model(str(tiny_bundle), "cpu"), always=True)
    assert meter.roofline_s is None
