"""Recording of steps, with a device that is played: what it is asked for, and what happens where it fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from vidqa.generate.attention.cuda_graphs import _FAILED, _RECORD_AFTER, StepGraphs, _side_stream


class Played:
    """What `torch.cuda` is asked for; `fails` is raised at the end of a recording, as CUDA does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Exception | None = None) -> None:
        self.modes: list[str] = []
        self.beside: list[Any] = []
        self.streams: list[Any] = []
        self.replays = 0

        @contextmanager
        def graph(one: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            self.modes.append(capture_error_mode)
            self.beside.append(stream)
            yield
            if fails:
                raise fails

        def replay(_: Any) -> None:
            self.replays += 1

        _side_stream.cache_clear()
        stream = type("Stream", (), {"wait_stream": lambda *_: None, "name": "beside"})
        usual = type("Stream", (), {"wait_stream": lambda *_: None, "name": "usual"})()
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream())
        monkeypatch.setattr(torch.cuda, "stream", lambda one: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: usual)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "set_stream", self.streams.append)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": replay})())
        monkeypatch.setattr(torch.cuda, "graph", graph)


def run(graphs: StepGraphs, n: int) -> list[torch.Tensor]:
    return [graphs.run("shape", lambda ids: ids * 2.0, torch.tensor([3])) for _ in range(n)]


def test_a_step_that_comes_again_is_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this thread's calls count while it is recorded: others decode and encode on the same device."""
    played = Played(monkeypatch)
    assert [one.item() for one in run(StepGraphs(), _RECORD_AFTER + 3)] == [6.0] * (_RECORD_AFTER + 3)
    assert played.modes == ["thread_local"]
    assert played.replays == 1 + 3


def test_where_recording_fails_steps_go_on_on_the_usual_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    played = Played(monkeypatch, RuntimeError("CUDA error: operation failed due to a previous error during capture"))
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert [one.item() for one in run(StepGraphs(), _RECORD_AFTER + 3)] == [6.0] * (_RECORD_AFTER + 3)
    assert len(played.modes) == 1 and played.replays == 0
    assert [one.name for one in played.streams] == ["usual"]
    assert "not recorded" in caplog.text


def test_a_device_without_room_for_a_recording_has_room_for_the_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The step itself went well: nobody need begin again with half as many lines."""
    played = Played(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert [one.item() for one in run(StepGraphs(), _RECORD_AFTER + 1)] == [6.0] * (_RECORD_AFTER + 1)
    assert [one.name for one in played.streams] == ["usual"]
    assert "out of memory" in caplog.text


def test_a_step_without_room_is_for_the_engine_to_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    Played(monkeypatch)

    def full(ids: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        StepGraphs().run("shape", full, torch.tensor([3]))


@pytest.mark.parametrize("knew", [False, True])
def test_the_allocator_hears_of_a_recording_that_failed(monkeypatch: pytest.MonkeyPatch, knew: bool) -> None:
    """Else it would never give cached memory back again: torch ends only what ended well."""
    told: list[tuple[str, int, int]] = []

    def end(device: int, memory: int) -> None:
        told.append(("end", device, memory))
        if knew:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    _FAILED.clear()
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *which: told.append(("release", *which)), raising=False)
    Played(monkeypatch, RuntimeError("CUDA error: operation failed due to a previous error during capture"))
    run(StepGraphs(), _RECORD_AFTER)
    assert told == [("end", 1, 0), ("release", 1, 0)][: 1 if knew else 2]
    assert len(_FAILED) == (0 if knew else 1), "a recording that knew gives its memory back at once"


def test_a_recording_that_went_wrong_in_one_line_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Played(monkeypatch)
    rows, runs = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)), []

    def step(ids: torch.Tensor) -> torch.Tensor:
        runs.append(ids)
        out = rows.clone()
        if len(runs) == _RECORD_AFTER + 3:  # warm-up twice, then the recording
            out[63] = 0
        return out

    graphs = StepGraphs()
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        for _ in range(_RECORD_AFTER + 1):
            assert torch.equal(graphs.run("shape", step, torch.tensor([3])), rows)
    assert "differs by 1" in caplog.text


def test_all_recordings_run_on_one_stream_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream keeps a workspace of the matrix library for good."""
    played = Played(monkeypatch)
    for _ in range(2):  # two batches, one after another
        graphs = StepGraphs()
        for shape in ("one", "other"):
            for _ in range(_RECORD_AFTER):
                graphs.run(shape, lambda ids: ids * 2.0, torch.tensor([3]))
    assert len(played.beside) == 4 and len(set(map(id, played.beside))) == 1
