"""Capture and replay of decode steps with a mocked `torch.cuda`: the calls made, and the behaviour on failure."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from vidqa.generate.attention.cuda_graphs import _CAPTURE_AFTER, _FAILED, StepGraphs, _side_stream


class MockCuda:
    """Records calls of `torch.cuda`; `fails` is raised at the end of a capture, as CUDA does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Exception | None = None) -> None:
        self.modes: list[str] = []
        self.capture_streams: list[Any] = []
        self.streams: list[Any] = []
        self.replays = 0

        @contextmanager
        def graph(one: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            self.modes.append(capture_error_mode)
            self.capture_streams.append(stream)
            yield
            if fails:
                raise fails

        def replay(_: Any) -> None:
            self.replays += 1

        _side_stream.cache_clear()
        stream = type("Stream", (), {"wait_stream": lambda *_: None, "name": "side"})
        main_stream = type("Stream", (), {"wait_stream": lambda *_: None, "name": "main"})()
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream())
        monkeypatch.setattr(torch.cuda, "stream", lambda one: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main_stream)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "set_stream", self.streams.append)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": replay})())
        monkeypatch.setattr(torch.cuda, "graph", graph)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):  # builds of torch for CPUs have no such functions
            monkeypatch.setattr(torch._C, name, lambda *_: None, raising=False)


def run(graphs: StepGraphs, n: int) -> list[torch.Tensor]:
    return [graphs.run("shape", lambda ids: ids * 2.0, torch.tensor([3])) for _ in range(n)]


def test_a_repeated_step_is_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The capture mode is thread_local: other threads use the same device meanwhile."""
    cuda = MockCuda(monkeypatch)
    assert [one.item() for one in run(StepGraphs(), _CAPTURE_AFTER + 3)] == [6.0] * (_CAPTURE_AFTER + 3)
    assert cuda.modes == ["thread_local"]
    assert cuda.replays == 1 + 3


def test_after_a_failed_capture_steps_run_eagerly_on_the_main_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = MockCuda(monkeypatch, RuntimeError("CUDA error: operation failed due to a previous error during capture"))
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert [one.item() for one in run(StepGraphs(), _CAPTURE_AFTER + 3)] == [6.0] * (_CAPTURE_AFTER + 3)
    assert len(cuda.modes) == 1 and cuda.replays == 0
    assert [one.name for one in cuda.streams] == ["main"]
    assert "not captured" in caplog.text


def test_no_memory_for_a_graph_does_not_fail_the_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The step itself succeeded, so the engine need not back off."""
    cuda = MockCuda(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert [one.item() for one in run(StepGraphs(), _CAPTURE_AFTER + 1)] == [6.0] * (_CAPTURE_AFTER + 1)
    assert [one.name for one in cuda.streams] == ["main"]
    assert "out of memory" in caplog.text


def test_out_of_memory_in_a_step_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    MockCuda(monkeypatch)

    def full(ids: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        StepGraphs().run("shape", full, torch.tensor([3]))


@pytest.mark.parametrize("informed", [False, True])
def test_the_allocator_is_informed_of_a_failed_capture(monkeypatch: pytest.MonkeyPatch, informed: bool) -> None:
    """Otherwise it would never return cached memory again: torch informs it of successful captures only."""
    calls: list[tuple[str, int, int]] = []

    def end(device: int, memory: int) -> None:
        calls.append(("end", device, memory))
        if informed:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    _FAILED.clear()
    MockCuda(monkeypatch, RuntimeError("CUDA error: operation failed due to a previous error during capture"))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *which: calls.append(("release", *which)))
    run(StepGraphs(), _CAPTURE_AFTER)
    assert calls == [("end", 1, 0), ("release", 1, 0)][: 1 if informed else 2]
    assert len(_FAILED) == (0 if informed else 1), "a graph that torch ended itself is freed at once"


def test_a_graph_with_one_wrong_sequence_is_rejected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    MockCuda(monkeypatch)
    rows, runs = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)), []

    def step(ids: torch.Tensor) -> torch.Tensor:
        runs.append(ids)
        out = rows.clone()
        if len(runs) == _CAPTURE_AFTER + 3:  # two warm-up runs, then the capture
            out[63] = 0
        return out

    graphs = StepGraphs()
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        for _ in range(_CAPTURE_AFTER + 1):
            assert torch.equal(graphs.run("shape", step, torch.tensor([3])), rows)
    assert "differs by 1" in caplog.text


def test_all_captures_use_one_side_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream keeps a workspace of the matrix library permanently."""
    cuda = MockCuda(monkeypatch)
    for _ in range(2):  # two batches, one after another
        graphs = StepGraphs()
        for shape in ("one", "other"):
            for _ in range(_CAPTURE_AFTER):
                graphs.run(shape, lambda ids: ids * 2.0, torch.tensor([3]))
    assert len(cuda.capture_streams) == 4 and len(set(map(id, cuda.capture_streams))) == 1
